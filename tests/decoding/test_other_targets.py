"""Targets other than plain decoders: encoder-decoders, hybrids, recurrent and multimodal models."""

from typing import Any

import pytest
import torch
from conftest import LOOPS, VOCAB_SIZE, assisted, drafter, failfast, plain, prompt, target, tiny_model
from scripted import ScriptedDrafter
from test_batch import ScriptedRows, batch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForSeq2SeqLM, LlamaForCausalLM

from hf_failfast.compatibility import CACHE

LINEAR: dict[str, Any] = {f"linear_{kind}_head_dim": 8 for kind in ("key", "value")} | {"head_dim": 8}
LINEAR |= {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
RECURRENT: dict[str, dict[str, Any]] = {
    "qwen3_next": LINEAR | EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_5_text": LINEAR,
    "mamba": {},
    "jamba": {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
}


def encoder_decoder(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB_SIZE, "d_model": 32, "decoder_start_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **sizes, bos_token_id=None, eos_token_id=None, **options)
    return AutoModelForSeq2SeqLM.from_config(config).eval()


TARGETS = {
    "t5": lambda: encoder_decoder("t5", d_kv=8, d_ff=64, num_layers=2, num_heads=4, initializer_factor=10.0),
    "bart": lambda: encoder_decoder(
        "bart",
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        init_std=0.3,
        forced_eos_token_id=None,
        tie_word_embeddings=False,
    ),
    "lfm2": lambda: tiny_model("lfm2", layer_types=["conv", "full_attention"], conv_L_cache=3),
}


@pytest.mark.parametrize("ngram", [2, 3])
@pytest.mark.parametrize("name", TARGETS)
def test_in_transformers_own_loop(name: str, ngram: int) -> None:
    """Encoder-decoders and convolution hybrids keep their text in transformers' own loop, and drafts are accepted."""
    model, options = TARGETS[name](), {"max_new_tokens": 24, "no_repeat_ngram_size": ngram}
    reference = plain(model, prompt(9), **options)
    script = ScriptedDrafter(reference, [3, 0, 10, 1])
    output = assisted(model, prompt(9), script, return_dict_in_generate=True, **options)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.accepted > 8 and len(reference.unique()) > 3
    assert torch.equal(assisted(model, prompt(9), drafter("canvas_shift", "qwen2"), **options), reference)


@pytest.mark.parametrize("name", TARGETS)
def test_goodput_needs_our_own_loop(name: str) -> None:
    """Refuses `length_policy="goodput"` in transformers' loop and names the target's type."""
    with pytest.raises(ValueError, match=f"`length_policy='goodput'` times rounds.* `{name}` target"):
        assisted(TARGETS[name](), prompt(9), drafter("canvas_shift", "qwen2"), length_policy="goodput")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_state_is_refused(name: str, loop: str) -> None:
    """Both loops refuse targets with a recurrent state, and name plain `generate`."""
    model = tiny_model(name, **RECURRENT[name])
    with pytest.raises(ValueError, match=f"`{name}` keeps a recurrent state.* Use plain `generate`"):
        LOOPS[loop](model, prompt(9), drafter("canvas_shift", "qwen2"), max_new_tokens=3)


MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
    "gemma3": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"image_size": 32, "patch_size": 16},
}
TEXT = {"qwen2_vl": MROPE, "gemma3": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}}


def multimodal(name: str) -> Any:
    own = ("model_type", "layer_types", "architectures", "rope_parameters")
    text = {key: value for key, value in tiny_model("qwen2").config.to_diff_dict().items() if key not in own}
    text |= {"head_dim": 8} | TEXT[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, text_config=text | {"vocab_size": VOCAB_SIZE}, vision_config=VISION[name])
    for index, key in enumerate(("image_token_id", "video_token_id", "image_token_index")):
        if hasattr(config, key):
            setattr(config, key, VOCAB_SIZE - 1 - index)
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", TEXT)
def test_text_for_a_multimodal_model(name: str, loop: str) -> None:
    """Text prompts for multimodal models, three-dimensional positions included, give plain `generate`'s text."""
    model, input_ids = multimodal(name), prompt(23) % 90
    reference = plain(model, input_ids, max_new_tokens=20)
    script = ScriptedDrafter(reference, [3, 0, 10, 1])
    output = LOOPS[loop](model, input_ids, script, max_new_tokens=20, return_dict_in_generate=True)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.accepted > 8


TOKEN_TYPES = {"gemma3": "token_type_ids", "qwen2_vl": "mm_token_type_ids"}


@pytest.mark.parametrize("lengths", [(23,), (23, 9, 16)])
@pytest.mark.parametrize("name", TOKEN_TYPES)
def test_token_types_of_a_text(name: str, lengths: tuple[int, ...]) -> None:
    """The zeros by which the processors of image models call a prompt text are taken, as in plain `generate`."""
    model, (ids, mask) = multimodal(name), batch(lengths)
    ids %= 90
    options = {"attention_mask": mask, "max_new_tokens": 12, TOKEN_TYPES[name]: torch.zeros_like(ids)}
    reference = plain(model, ids, **options)
    texts = [reference[row : row + 1, max(lengths) - length :] for row, length in enumerate(lengths)]
    script = ScriptedRows([ScriptedDrafter(text, [3, 0, 10, 1]) for text in texts])
    output = failfast(model, ids, script, return_dict_in_generate=True, **options)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.accepted > 4


@pytest.mark.parametrize("name", TOKEN_TYPES)
def test_token_types_of_images_are_refused(name: str) -> None:
    """Refuses by name token types that say of a token that it is not text."""
    types = torch.zeros(1, 9, dtype=torch.long)
    types[0, 3] = 1
    with pytest.raises(ValueError, match=f"^`{TOKEN_TYPES[name]}` is not supported"):
        failfast(multimodal(name), prompt(9) % 90, drafter("canvas"), max_new_tokens=3, **{TOKEN_TYPES[name]: types})


def test_zeros_that_are_not_text_are_refused() -> None:
    """GPT-2 adds an embedding for each token type, zero among them: refused by name."""
    types = torch.zeros(1, 9, dtype=torch.long)
    with pytest.raises(ValueError, match="^`token_type_ids` is not supported"):
        failfast(target("gpt2"), prompt(9), drafter("canvas"), max_new_tokens=3, token_type_ids=types)


def test_token_types_of_a_bert_decoder() -> None:
    """A BERT decoder's token types are zeros by default: given zeros change nothing."""
    model = tiny_model("bert", is_decoder=True, type_vocab_size=2)
    options = {"max_new_tokens": 12, "token_type_ids": torch.zeros(1, 9, dtype=torch.long)}
    reference = plain(model, prompt(9), **options)
    assert torch.equal(failfast(model, prompt(9), ScriptedDrafter(reference, [3, 0, 10, 1]), **options), reference)


class IgnoresLogitsToKeep(LlamaForCausalLM):
    """As much remote code: takes any argument, and returns all logits."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **inputs: Any) -> Any:
        inputs.pop("logits_to_keep", None)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **inputs)


class RefusesLogitsToKeep(LlamaForCausalLM):
    """As older remote code: an argument that it does not know is a TypeError."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        cache: Any = None,
        inputs_embeds: Any = None,
        use_cache: Any = None,
        return_dict: Any = None,
    ) -> Any:
        own = {CACHE: past_key_values if cache is None else cache, "use_cache": use_cache}
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **own)


class AlwaysReturnsAllLogits(LlamaForCausalLM):
    """Names the argument and does not heed it."""

    def forward(self, input_ids: Any = None, logits_to_keep: Any = 0, **inputs: Any) -> Any:
        return super().forward(input_ids=input_ids, **inputs)


@pytest.mark.parametrize("lengths", [(9,), (23, 9, 16)])
@pytest.mark.parametrize("kind", [IgnoresLogitsToKeep, RefusesLogitsToKeep, AlwaysReturnsAllLogits])
def test_a_forward_that_returns_all_logits(kind: type[LlamaForCausalLM], lengths: tuple[int, ...]) -> None:
    """Targets whose forward leaves out no logits keep their text, alone and in a batch, with and without scores."""
    model = kind(target("llama").config).eval()
    model.load_state_dict(target("llama").state_dict())
    ids, mask = batch(lengths)
    options = {"attention_mask": mask, "max_new_tokens": 20}
    reference = plain(model, ids, **options)
    proposer = ScriptedRows(
        [ScriptedDrafter(plain(model, prompt(n), max_new_tokens=30), [3, 0, 10, 1]) for n in lengths]
    )
    output = failfast(model, ids, proposer, return_dict_in_generate=True, output_logits=True, **options)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.accepted > 8 * len(lengths)
    own = drafter("canvas_shift", "llama")
    assert torch.equal(failfast(model, ids, own, **options), reference)
