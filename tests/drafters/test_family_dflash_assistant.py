"""transformers' own DFlash class on a tiny random model, compared with transformers' own candidate generator."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_support import check_parity, tiny_model
from sessions import draft_of, session_of
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.candidate_generator import DFlashTokenCandidateGenerator
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_failfast
from hf_failfast import FailFastConfig, load_drafter
from hf_failfast.drafters.checkpoints import reading
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint
from hf_failfast.drafters.conditioned.dflash import DFlashDrafter, DFlashSession
from hf_failfast.engine.ragged import RaggedIds
from hf_failfast.policies.confidence import FixedLength

VOCABULARY, MASK_ID, BLOCK, WINDOW = 96, 95, 6, 9
CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": WINDOW,
    "max_position_embeddings": 512,
    "block_size": BLOCK,
    "mask_token_id": MASK_ID,
    "target_layer_ids": [0, 2],
    "initializer_range": 0.3,
}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = transformers.MuseGlimmerAssistantModel(transformers.MuseGlimmerAssistantConfig(**CONFIG))
    path = tmp_path_factory.mktemp("dflash-assistant")
    model.to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["qwen3", "muse_glimmer"])
def target(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A plain target, and the one that the class was published for, with a normalised embedding."""
    options = {"num_hidden_layers": 4, "head_dim": 8}
    if request.param == "qwen3":
        return tiny_model("qwen3", VOCABULARY, **options)
    text = CONFIG | options | {"vocab_size": VOCABULARY, "layer_types": None, "sliding_window": 16}
    text |= {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    for key in ("block_size", "mask_token_id", "target_layer_ids"):
        del text[key]
    torch.manual_seed(0)
    model = transformers.MuseGlimmerForConditionalGeneration(
        transformers.MuseGlimmerConfig(text_config=text, vision_config=VISION)
    )
    return model.float().eval()


def load(folder: Path, **options: Any) -> DFlashDrafter:
    drafter = load_drafter(folder, **({"dtype": torch.float32} | options))
    assert isinstance(drafter, DFlashDrafter)
    return drafter


def native_generator(drafter: DFlashDrafter, target: PreTrainedModel) -> DFlashTokenCandidateGenerator:
    config = GenerationConfig(max_length=256, do_sample=False)
    model = drafter.body.model
    return DFlashTokenCandidateGenerator(model, target.get_input_embeddings(), target.get_output_embeddings(), config)


def expected(logits: torch.Tensor, target: PreTrainedModel) -> tuple[list[int], torch.Tensor]:
    """Ids and confidences from candidate logits (1, b - 1, V), without the mask token.

    The generator takes them from the target's bare head; a Muse Glimmer's own forward scales and caps them then.
    """
    config = target.config.get_text_config()
    if hasattr(config, "output_multiplier"):
        cap = config.final_logit_softcapping
        logits = cap * torch.tanh(logits * config.output_multiplier / cap)
    probabilities = logits[0].softmax(dim=-1)
    probabilities[:, MASK_ID] = 0
    confidence, ids = probabilities.max(dim=-1)
    return ids.tolist(), confidence


@pytest.mark.parametrize("prompt_length", [2, 7, 30])
@torch.no_grad()
def test_rounds_of_the_native_generator(folder: Path, target: PreTrainedModel, prompt_length: int) -> None:
    """Drafts and confidences equal the generator's, whatever is accepted, within and far beyond the window."""
    drafter = load(folder)
    native, session = native_generator(drafter, target), session_of(drafter, target, 256)
    text = torch.randint(0, 90, (1, 120), generator=torch.Generator().manual_seed(3))
    states = target(text, output_hidden_states=True).hidden_states
    # transformers 5.17 numbers the layers in another way, so the generator names those it needs.
    asked_for = target(text, **native.model_kwargs_overrides).hidden_states
    assert drafter.target_layers == (1, 3)
    length, seen = prompt_length, 0
    for accepted in [0, 3, BLOCK - 1, 0, 1, 4, BLOCK - 1, 2, 0, 0]:
        # The target's own token. The native generator cuts the rows of rejected tokens off itself.
        length += 1
        rows = tuple(None if state is None else state[:, seen:] for state in asked_for)
        _, logits = native.get_candidates(
            text[:, :length],
            model_kwargs={
                "position_ids": torch.arange(length)[None],
                "attention_mask": torch.ones(1, length, dtype=torch.long),
            },
            model_outputs=transformers.modeling_outputs.CausalLMOutputWithPast(hidden_states=rows),
            is_first_iteration=False,
            n_last_matches=length - seen - 2,
        )
        session.observe([torch.cat([states[layer][:, seen : length - 1] for layer in drafter.target_layers], dim=-1)])
        draft = draft_of(session, text[:, :length], FixedLength(BLOCK - 1), 64)
        ids, confidence = expected(logits, target)
        assert draft.token_ids[0].tolist() == ids
        torch.testing.assert_close(draft.confidence[0], confidence, atol=1e-5, rtol=0)
        assert draft.passes == 1
        session.accept([accepted])
        seen = length - 1
        length += accepted


def test_the_same_drafts_as_in_the_native_loop(
    folder: Path, target: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole `generate` with `speculation_type="dflash"` drafts the same blocks as ours."""
    drafter = load(folder)
    native: dict[int, list[int]] = {}
    ours: dict[int, list[int]] = {}
    get_candidates, draft = DFlashTokenCandidateGenerator.get_candidates, DFlashSession.draft

    def record_native(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        candidates, logits = get_candidates(self, input_ids, **options)
        if logits is not None:
            native[input_ids.shape[1]] = expected(logits, target)[0]
        return candidates, logits

    def record_ours(self: DFlashSession, text: RaggedIds, *options: Any) -> Any:
        drafted = draft(self, text, *options)
        ours[text.lengths[0]] = drafted.token_ids[0].tolist()
        return drafted

    monkeypatch.setattr(DFlashTokenCandidateGenerator, "get_candidates", record_native)
    monkeypatch.setattr(DFlashSession, "draft", record_ours)
    prompt = torch.arange(20)[None]
    settings = {"max_new_tokens": 40, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    plain = target.generate(prompt, **settings)
    output = target.generate(prompt, assistant_model=drafter.body.model, speculation_type="dflash", **settings)
    assert output.tolist() == plain.tolist()
    settings |= {"assistant_model": drafter, "confidence_threshold": 0.0}
    output = target.generate(prompt, custom_generate="hf_failfast", **settings)
    assert output.tolist() == plain.tolist()
    common = sorted(native.keys() & ours.keys())
    assert len(common) >= 20
    for length in common:
        assert ours[length] == native[length][: len(ours[length])]
        assert len(ours[length]) == min(BLOCK - 1, 59 - length)


def test_both_loops_write_what_the_target_writes(folder: Path, target: PreTrainedModel) -> None:
    drafter = load(folder)
    stats = check_parity(target, drafter, 40)
    assert stats.records[0].drafted == 0
    sure = check_parity(target, drafter, 30, confidence_threshold=0.0)
    unsure = check_parity(target, drafter, 30, confidence_threshold=1.0, chunk_length=2)
    assert {record.drafted for record in sure.records[1:-6]} == {BLOCK - 1}
    assert max(record.drafted for record in unsure.records) == 2
    assert drafter.config == FailFastConfig(chunk_length=4)


def test_accepted_drafts(folder: Path) -> None:
    """A target of four tokens accepts drafts at three or more lengths and keeps its text."""
    target = tiny_model("qwen3", 4, seed=3, num_hidden_layers=4)
    drafter = load(folder, mask_token_id=3)
    stats = check_parity(target, drafter, 80, confidence_threshold=0.0)
    assert len({record.accepted for record in stats.records}) >= 3


def test_padding(folder: Path, target: PreTrainedModel) -> None:
    prompt = torch.arange(12)[None]
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), prompt], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :5] = 0
    settings = {"max_new_tokens": 16, "do_sample": False, "attention_mask": mask}
    plain = target.generate(padded, **settings)
    assert hf_failfast.generate(target, padded, assistant_model=load(folder), **settings).tolist() == plain.tolist()


def test_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = load(folder, dtype="auto")
    assert {parameter.dtype for parameter in drafter.body.parameters()} == {torch.bfloat16}
    assert (drafter.block_size, drafter.mask_token_id) == (BLOCK, MASK_ID)
    assert load(folder, block_size=4).block_size == 4
    found = inspect_checkpoint(folder)
    assert (found.family, found.chunk_per_pass) == ("DFlash assistant of transformers", BLOCK - 1)
    with pytest.raises(ValueError, match="drafts in its own way"):
        load(folder, prefix_block=8)
    monkeypatch.delitem(CONFIG_MAPPING._mapping, "muse_glimmer_assistant")
    monkeypatch.setattr(reading, "_config_names", dict)
    with pytest.raises(ValueError, match=r"update it \(transformers >= 5.17\)"):
        load(folder)


@pytest.mark.parametrize(
    ("vocab_size", "sizes", "reason"),
    [
        (VOCABULARY, {"hidden_size": 64, "num_hidden_layers": 4}, "64 wide"),
        (VOCABULARY, {"num_hidden_layers": 2}, "has 2"),
        (64, {"num_hidden_layers": 4}, "`mask_token_id` is 95, .* 64 rows"),
    ],
)
def test_a_target_that_does_not_fit(
    folder: Path, tmp_path: Path, vocab_size: int, sizes: dict[str, int], reason: str
) -> None:
    model = tiny_model("qwen3", vocab_size, **sizes)
    with pytest.raises(ValueError, match=reason):
        session_of(load(folder), model, 64)
    model.save_pretrained(tmp_path)
    misfit = inspect_checkpoint(folder, target=tmp_path).misfit
    assert misfit is not None
    with pytest.raises(ValueError, match=reason):
        raise ValueError(misfit)
