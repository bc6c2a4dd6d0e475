"""No key of a published config is passed over in silence: it is read, or known to change nothing, or refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from family_support import DATA, copy_checkpoint, save_as, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_failfast import load_drafter
from hf_failfast.drafters import DraftRequest
from hf_failfast.drafters.checkpoints import families
from hf_failfast.drafters.checkpoints.config_keys import check_config, verdict
from hf_failfast.drafters.checkpoints.families import FAMILIES, find_family
from hf_failfast.drafters.checkpoints.family import Family

QWEN = """attention_dropout bos_token_id eos_token_id hidden_act hidden_size initializer_range intermediate_size
max_position_embeddings max_window_layers num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps
rope_scaling rope_theta sliding_window tie_word_embeddings use_cache use_sliding_window vocab_size"""
LLAMA = """attention_bias attention_dropout bos_token_id eos_token_id hidden_act hidden_size initializer_range
intermediate_size max_position_embeddings mlp_bias num_attention_heads num_hidden_layers num_key_value_heads
pretraining_tp rms_norm_eps rope_scaling rope_theta tie_word_embeddings use_cache vocab_size"""
BOOKKEEPING = "architectures auto_map model_type torch_dtype transformers_version"

DFLASH_READ = f"""{QWEN} attention_bias block_size dflash_config dtype head_dim is_causal layer_types num_target_layers
rope_parameters mask_token_id target_layer_ids causal_head causal final_logit_softcapping input_embedding_scale
output_multiplier sample_from_anchor shift_label swa_window_size target_hidden_size use_swa"""
DFLASH_FIXED = "attention_sink_bias draft_shift fc_norm projector_type"
SPECULATORS = """transformer_layer_config aux_hidden_state_layer_ids block_size draft_vocab_size mask_token_id
sample_from_anchor sliding_window_non_causal speculators_model_type target_hidden_size tie_word_embeddings dtype"""
SPECULATORS_OTHER = "architectures auto_map max_anchors speculators_config speculators_version transformers_version"
# Per family, the keys of its published config: those read, those without effect here, and those that are refused
# with another value than the published one. From the checkpoints of the tests, the model cards and the original code.
PUBLISHED: dict[str, tuple[str, str, str]] = {
    "Fast-dLLM v2": (f"{QWEN} bd_size layer_types pad_token_id", f"{BOOKKEEPING} conplemenrary_mask", ""),
    "SDAR / TraDo": (
        f"{QWEN} attention_bias block_size head_dim mask_token_id",
        f"{BOOKKEEPING} attn_implementation debug ep_size fuse_cross_entropy micro_forward skip_checkpoint use_deepep",
        "",
    ),
    "SDAR MoE": (
        "attention_bias decoder_sparse_step head_dim hidden_act hidden_size intermediate_size mlp_only_layers "
        "moe_intermediate_size norm_topk_prob num_experts num_experts_per_tok num_hidden_layers num_key_value_heads "
        "output_router_logits rms_norm_eps rope_theta router_aux_loss_coef sliding_window vocab_size",
        f"{BOOKKEEPING} debug ep_size fuse_cross_entropy micro_forward skip_checkpoint use_deepep",
        "",
    ),
    "DFlash": (DFLASH_READ, BOOKKEEPING, DFLASH_FIXED),
    "DFlash 2": (
        f"{DFLASH_READ} conv_group_size conv_kernel_size selector_rank selector_top_k",
        BOOKKEEPING,
        DFLASH_FIXED,
    ),
    "DSpark": (
        f"{QWEN} attention_bias block_size head_dim layer_types mask_token_id num_target_layers target_layer_ids "
        "markov_rank markov_head_type enable_confidence_head confidence_head_with_markov dtype",
        f"{BOOKKEEPING} num_anchors",
        f"{DFLASH_FIXED} dspark_bonus_anchor",
    ),
    "DFlash of speculators": (SPECULATORS, SPECULATORS_OTHER, ""),
    "DFlash 2 of speculators": (
        f"{SPECULATORS} conv_group_size conv_kernel_size selector_rank selector_top_k",
        SPECULATORS_OTHER,
        "",
    ),
    "DSpark of speculators": (
        f"{SPECULATORS} markov_rank markov_head_type enable_confidence_head confidence_head_with_markov",
        SPECULATORS_OTHER,
        "",
    ),
    "DFlash assistant of transformers": (
        "block_size head_dim hidden_size intermediate_size layer_types mask_token_id num_attention_heads "
        "num_hidden_layers num_key_value_heads sliding_window target_layer_ids",
        f"{BOOKKEEPING} initializer_range",
        "",
    ),
    "Efficient-DLM": (f"{QWEN} attention_bias block_size head_dim mask_token_id", f"{BOOKKEEPING} dlm_paradigm", ""),
    "Stable-DiffCoder": (f"{LLAMA} head_dim", BOOKKEEPING, ""),
    "dllm bd3lm": (f"{QWEN} layer_types", BOOKKEEPING, ""),
    "dllm mdlm": (f"{QWEN} layer_types", BOOKKEEPING, ""),
    "Dream / DiffuCoder": (f"{QWEN} mask_token_id pad_token_id", BOOKKEEPING, "use_mrope"),
    "Open-dCoder": (f"{QWEN} layer_types", BOOKKEEPING, ""),
    "LLaDA": (
        "attention_dropout d_model embedding_size eos_token_id include_qkv_bias mask_token_id max_sequence_length "
        "mlp_hidden_size n_heads n_kv_heads n_layers pad_token_id rms_norm_eps rope_theta use_cache vocab_size "
        "weight_tying",
        f"{BOOKKEEPING} alibi_bias_max attention_layer_norm_with_affine embedding_dropout flash_attention "
        "init_cutoff_factor init_device init_fn init_std mlp_ratio precision residual_dropout rope_full_precision",
        "activation_type alibi attention_layer_norm bias_for_layer_norm block_group_size block_type include_bias "
        "input_emb_norm layer_norm_type layer_norm_with_affine multi_query_attention rope scale_logits",
    ),
    "DiffuLLaMA": (LLAMA, BOOKKEEPING, ""),
    "DiffuGPT": (
        "activation_function attn_pdrop bos_token_id embd_pdrop eos_token_id initializer_range layer_norm_epsilon "
        "n_embd n_head n_layer n_positions resid_pdrop vocab_size",
        "architectures model_type n_ctx task_specific_params",
        "",
    ),
    "MDLM": (
        "cond_dim hidden_dim model_length n_blocks n_heads vocab_size",
        f"{BOOKKEEPING} _name_or_path dropout return_dict",
        "time_conditioning",
    ),
    "BD3-LM": (
        "block_size cond_dim hidden_dim model_length n_blocks n_heads vocab_size",
        f"{BOOKKEEPING} _name_or_path return_dict attn_backend cross_attn dropout sampling_eps_max sampling_eps_min "
        "var_min",
        "adaln causal time_conditioning",
    ),
    "RND1": (
        "attention_bias attention_dropout decoder_sparse_step eos_token_id head_dim hidden_act hidden_size "
        "intermediate_size mask_token_id max_position_embeddings mlp_only_layers moe_intermediate_size norm_topk_prob "
        "num_attention_heads num_experts num_experts_per_tok num_hidden_layers num_key_value_heads "
        "output_router_logits pad_token_id rms_norm_eps rope_scaling rope_theta router_aux_loss_coef sliding_window "
        "tie_word_embeddings use_cache use_sliding_window vocab_size",
        f"{BOOKKEEPING} moe_backend num_diffusion_steps",
        "is_causal",
    ),
    "CoDA": (
        f"{QWEN} attention_bias head_dim mask_token_id",
        f"{BOOKKEEPING} attention_kernel block_masking_probability mask_block_sizes prefix_probability sampling_eps "
        "truncate_probability",
        "",
    ),
    "PARD": (f"{QWEN} layer_types pard_token", BOOKKEEPING, "spd_type"),
    "WeDLM": (
        f"{QWEN} attention_bias head_dim mask_token_id qk_norm",
        f"{BOOKKEEPING} wedlm_entropy_threshold wedlm_pos_penalty_factor wedlm_window_size",
        "",
    ),
    "Jacobi forcing": (f"{QWEN} layer_types", BOOKKEEPING, ""),
    "SDLM": (f"{QWEN} block_size text_mask_token_id", BOOKKEEPING, "causal_attn"),
    "Nemotron-Labs-Diffusion": (
        "attention_dropout block_size bos_token_id eos_token_id head_dim hidden_act hidden_size intermediate_size "
        "mask_token_id max_position_embeddings num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps "
        "rope_parameters sliding_window tie_word_embeddings use_cache vocab_size",
        f"{BOOKKEEPING} ar_loss_weight attn_implementation dlm_loss_weight dlm_paradigm dp_varying_mask_ratio",
        "attention_bias mlp_bias",
    ),
    **dict.fromkeys(
        ("Uno", "I-DLM"),
        (
            "alpha_pattern lora_alpha r rank_pattern target_modules use_rslora",
            "auto_mapping base_model_name_or_path corda_config eva_config exclude_modules fan_in_fan_out "
            "inference_mode layers_pattern layers_to_transform loftq_config lora_dropout megatron_core revision",
            "alora_invocation_tokens arrow_config bias init_lora_weights layer_replication lora_bias "
            "megatron_config modules_to_save peft_type target_parameters task_type trainable_token_indices "
            "use_dora use_qalora",
        ),
    ),
    "DiffusionGemma": ("canvas_length text_config vision_config", "architectures model_type", ""),
}


def published() -> Iterator[tuple[str, str, str]]:
    for name, lists in PUBLISHED.items():
        for expected, keys in zip(("read", "without effect", "fixed"), lists, strict=True):
            yield from ((name, key, expected) for key in keys.split())


def row(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def test_every_family_is_listed() -> None:
    assert PUBLISHED.keys() == {family.name for family in FAMILIES}
    assert all(family.native_body or family.own_keys is not None for family in FAMILIES)


@pytest.mark.parametrize(("name", "key", "expected"), list(published()))
def test_what_becomes_of_a_published_key(name: str, key: str, expected: str) -> None:
    found = verdict(row(name), key)
    both = key in ("initializer_range", "architectures", "dtype")  # bookkeeping that config classes know, too
    assert found == expected or (both and found in ("read", "without effect"))


CHECKPOINTS = sorted(path.relative_to(DATA).as_posix() for path in DATA.glob("*/*/checkpoint"))


@pytest.mark.parametrize("folder", CHECKPOINTS)
def test_the_tests_checkpoints_have_listed_keys_only(folder: str) -> None:
    config = json.loads((DATA / folder / "config.json").read_text())
    family = find_family(config, folder)
    assert family is not None
    listed = {key for keys in PUBLISHED[family.name] for key in keys.split()}
    section = config.get(family.section, {}) if family.section else {}
    assert {*config, *section} <= listed
    check_config(family, family.renamed(config))


@pytest.mark.parametrize("folder", CHECKPOINTS)
def test_a_key_that_nobody_knows_is_refused(folder: str, tmp_path: Path) -> None:
    """An unknown key is refused by name, before a weight is read; without a value it says nothing."""
    with pytest.raises(ValueError, match=r"has \['bidirectional_window'\], which .* are not known to have"):
        load_drafter(copy_checkpoint(folder, tmp_path / "a", bidirectional_window=4))
    config = json.loads((DATA / folder / "config.json").read_text())
    family = find_family(config, folder)
    assert family is not None
    check_config(family, family.renamed(config | {"bidirectional_window": None}))


@pytest.mark.parametrize(
    ("folder", "changes"),
    [
        ("llada/case_1", {"rope": False}),
        ("llada/case_1", {"alibi": True}),
        ("llada/case_1", {"layer_norm_type": "low_precision"}),
        ("llada/case_1", {"scale_logits": True}),
        ("llada/case_1", {"clip_qkv": 8.0}),
        ("dream/case_1", {"use_mrope": True}),
        ("bd3lm/case_1", {"adaln": False}),
        ("bd3lm/case_1", {"causal": True}),
        ("dflash/case_1", {"attention_sink_bias": True}),
        ("dflash/case_1", {"quantization_config": {"bits": 4}}),
        ("dream/case_1", {"block_size": 8}),
    ],
)
def test_values_that_change_the_output_are_refused(folder: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """These loaded before, as if they were not there."""
    (key,) = changes
    with pytest.raises(ValueError, match=rf"{key}"):
        load_drafter(copy_checkpoint(f"{folder}/checkpoint", tmp_path / "a", **changes))


# Recognition


def saved(folder: Path, body: str, changes: dict[str, Any]) -> Path:
    options = {"head_dim": 8} if body == "qwen3" else {}
    return save_as(tiny_model(body, 128, **options), folder, changes, removed=())


def test_a_block_size_alone_makes_no_efficient_dlm(tmp_path: Path) -> None:
    """Any qwen3 config with a block size was taken for Efficient-DLM."""
    folder = saved(tmp_path / "mine", "qwen3", {"block_size": 7})
    with pytest.raises(ValueError, match="does not say how it drafts"):
        load_drafter(folder, mask_token_id=127)
    named = saved(tmp_path / "Efficient-DLM-4B", "qwen3", {"block_size": 16})
    assert load_drafter(named, mask_token_id=127).spec.block_size == 16
    renamed = {"block_size": 16, "architectures": ["EfficientDLMForCausalLM"]}
    assert load_drafter(saved(tmp_path / "b", "qwen3", renamed), mask_token_id=127).spec.block_size == 16


def test_stable_diffcoder_is_known_by_its_class(tmp_path: Path) -> None:
    classes = {"architectures": ["StableDiffcoderForCausalLM"]}
    drafter = load_drafter(saved(tmp_path / "copy", "llama", classes))
    assert (drafter.spec.attention, drafter.spec.mask_token_id) == ("block_causal", 5)
    plain = saved(tmp_path / "stable-diffcoder-target", "llama", {"architectures": ["LlamaForCausalLM"]})
    with pytest.raises(ValueError, match="does not say how it drafts"):
        load_drafter(plain)


def test_two_candidates_are_an_error_that_names_both(tmp_path: Path) -> None:
    """The first row that matched won; now the caller says which, by the folder's name or the arguments."""
    folder = saved(tmp_path / "mdlm-after-bd3lm", "qwen3", {"model_type": "a2d-qwen3"})
    with pytest.raises(ValueError, match="could be of 2 families: dllm bd3lm or dllm mdlm"):
        load_drafter(folder, mask_token_id=127)
    drafter = load_drafter(folder, mask_token_id=127, attention="bidirectional")
    assert drafter.spec.attention == "bidirectional"


def test_no_published_config_is_of_two_families() -> None:
    for folder in CHECKPOINTS:
        config = json.loads((DATA / folder / "config.json").read_text())
        assert sum(family.matches(config, folder) for family in families.FAMILIES) == 1, folder


@pytest.mark.parametrize("classes", [["DominoDraftModel"], ["Qwen3ForCausalLM"]])
def test_an_unknown_class_with_a_known_section(classes: list[str], tmp_path: Path) -> None:
    folder = copy_checkpoint("dflash/case_1/checkpoint", tmp_path / "a", architectures=classes, auto_map=None)
    with pytest.raises(ValueError, match=rf"`dflash_config` as DFlash .* its classes \['{classes[0]}'\].*not known"):
        load_drafter(folder)


# What DFlash reads


def confidences(folder: Path, target: PreTrainedModel, **options: Any) -> torch.Tensor:
    """Of one draft from the target's hidden states, (block,)."""
    drafter: Any = load_drafter(folder, dtype=torch.float32, **options)
    session = drafter.start(DraftRequest(target, capacity=64))
    text = torch.arange(20)[None]
    with torch.no_grad():
        states = target(text, output_hidden_states=True).hidden_states
        session.observe([torch.cat([states[layer] for layer in drafter.target_layers], dim=-1)])
        return session.draft_block(torch.tensor([[9]])).confidence[0]


@pytest.fixture(scope="module")
def target() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DATA / "dflash" / "case_6" / "target", dtype=torch.float32).eval()


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"block_size": 5},
        {"output_multiplier": 0.3},
        {"final_logit_softcapping": 2.0},
        {"input_embedding_scale": 3.0},
        {"is_causal": True},
        {"causal_head": True},
        {"causal": True},
        {"shift_label": True},
        {"sample_from_anchor": True},
        {"swa_window_size": 3},
        {"mask_token_id": 4},
        {"target_layer_ids": [2, 1]},
    ],
)
def test_every_key_of_dflash_changes_the_draft(
    changes: dict[str, Any], inside: bool, target: PreTrainedModel, tmp_path: Path
) -> None:
    """In `dflash_config` or beside it: each was passed over in one of the places, most in both."""
    config = json.loads((DATA / "dflash" / "case_6" / "checkpoint" / "config.json").read_text())
    section: dict[str, Any] = dict(config["dflash_config"])
    (key,) = changes
    section.pop(key, None)
    removed: dict[str, Any] = {"is_causal": None} if "causal" in key else {}
    written = {"dflash_config": section | changes} if inside else {"dflash_config": section, **changes}
    folder = copy_checkpoint("dflash/case_6/checkpoint", tmp_path / "a", **removed | written)
    before = confidences(DATA / "dflash" / "case_6" / "checkpoint", target)
    after = confidences(folder, target)
    assert after.shape != before.shape or (after - before).abs().max() > 1e-4


def test_use_swa_gives_layers_a_window(target: PreTrainedModel, tmp_path: Path) -> None:
    """The window of the section stands where Qwen3's config drops the one on top; in all layers if none is named."""
    plain = {"use_sliding_window": False, "layer_types": None}
    wide = confidences(copy_checkpoint("dflash/case_6/checkpoint", tmp_path / "a", **plain), target)
    section = {"block_size": 8, "mask_token_id": 78, "target_layer_ids": [1, 2], "use_swa": True}
    folder = copy_checkpoint("dflash/case_6/checkpoint", tmp_path / "b", dflash_config=section, **plain)
    assert (confidences(folder, target) - wide).abs().max() > 1e-4
    without = copy_checkpoint(
        "dflash/case_6/checkpoint", tmp_path / "c", dflash_config=section, sliding_window=None, **plain
    )
    with pytest.raises(ValueError, match="`use_swa` needs `swa_window_size` or `sliding_window`"):
        load_drafter(without)


def test_dflash_without_a_section_or_layers(target: PreTrainedModel, tmp_path: Path) -> None:
    """All keys on top, the class named; layers that nobody names are spread over the target's depth."""
    reference = confidences(DATA / "dflash" / "case_6" / "checkpoint", target)
    top = {"dflash_config": None, "block_size": 8, "mask_token_id": 78}
    folder = copy_checkpoint("dflash/case_6/checkpoint", tmp_path / "a", **top, target_layer_ids=[1, 2])
    torch.testing.assert_close(confidences(folder, target), reference)
    spread = copy_checkpoint("dflash/case_6/checkpoint", tmp_path / "b", **top)
    assert load_drafter(spread).target_layers == (2, 3)  # layers 1 and 2 of five, as their outputs
    unknown = copy_checkpoint("dflash/case_6/checkpoint", tmp_path / "c", **top, num_target_layers=None)
    with pytest.raises(ValueError, match="neither `target_layer_ids` nor `num_target_layers`"):
        load_drafter(unknown)


def test_dflash_contradictions_and_adapters(tmp_path: Path) -> None:
    config = json.loads((DATA / "dflash" / "case_6" / "checkpoint" / "config.json").read_text())
    section = config["dflash_config"]
    both = copy_checkpoint("dflash/case_6/checkpoint", tmp_path / "a", dflash_config=section | {"causal_head": True})
    with pytest.raises(ValueError, match="contradicts itself.*'causal_head': True, 'is_causal': False"):
        load_drafter(both)
    nested = copy_checkpoint("dflash/case_6/checkpoint", tmp_path / "b", dflash_config=section | {"gru_dim": 4})
    with pytest.raises(ValueError, match=r"section `dflash_config` has \['gru_dim'\]"):
        load_drafter(nested)
    wider = copy_checkpoint("dflash/case_6/checkpoint", tmp_path / "c", target_hidden_size=64)
    with pytest.raises(ValueError, match="`target_hidden_size` must be 40"):
        load_drafter(wider)


def test_gemma_type_targets_give_raw_embeddings(target: PreTrainedModel) -> None:
    """A target that scales its embeddings drafts as one that does not, unless the drafter's config has the scale."""

    class Scaled(nn.Embedding):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return super().forward(input_ids) * 7.0

    folder = DATA / "dflash" / "case_6" / "checkpoint"
    drafter: Any = load_drafter(folder, dtype=torch.float32)
    plain, scaled = (drafter.start(DraftRequest(target, capacity=64)) for _ in range(2))
    weight = target.get_input_embeddings().weight
    scaled.embedding = Scaled(*weight.shape)
    scaled.embedding.weight = weight
    ids = torch.tensor([[3, 78, 78]])
    torch.testing.assert_close(scaled.model._embed(ids), plain.model._embed(ids))


def test_the_readme_counts_the_families() -> None:
    listed = sum(family.listing is not None for family in FAMILIES)
    assert f"**Drafters**: {listed} public families load natively" in (REPOSITORY / "README.md").read_text()
