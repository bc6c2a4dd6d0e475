"""Fast-dLLM v2's own way to draft, with the published passes, confidences and drafts, compared with ours."""

from typing import Any

import pytest
import torch
from family_support import DATA, check_parity, read_json
from sessions import draft_of
from transformers import PreTrainedModel, Qwen2ForCausalLM

from hf_failfast import DrafterSpec, FailFastConfig, load_drafter
from hf_failfast.drafters import DraftRequest
from hf_failfast.drafters.masked.fast_dllm_reference import ReferenceSession
from hf_failfast.drafters.masked.session import MaskedDrafter
from hf_failfast.policies.confidence import ConfidenceThreshold

FOLDER = "fastdllm_v2/case_1"
CHECKPOINT = DATA / FOLDER / "checkpoint"
MASK_ID = 250
SPEC = DrafterSpec("block_causal", 1, MASK_ID, 32)


def is_adaptive(run: dict[str, Any]) -> bool:
    """Leaves out the static function, the reuse of rejected tokens (off by default), and the bug at 32."""
    adaptive = run["fn"] == "generate_draft_tokens_arbitrary_length" and run["last_round_rejected"] is None
    return adaptive and len(run["prefix"]) != 32


RUNS = [run for run in read_json(f"{FOLDER}/drafts.json") if is_adaptive(run)]
ROUNDS = read_json(f"{FOLDER}/rounds.json")


class FirstThenOthers(ConfidenceThreshold):
    """Confidence threshold with a first length and another increment, as in the authors' code."""

    def __init__(self, run: dict[str, Any]) -> None:
        super().__init__(FailFastConfig(run["tau"], run["spec_len"], run["max_spec_len"]))
        self.increment = run["incr_len"]

    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        self.chunk_length = self.increment
        return super().should_extend(confidence)


def drafter(mode: str, **options: Any) -> MaskedDrafter:
    loaded = load_drafter(CHECKPOINT, mask_token_id=MASK_ID, dtype=torch.float32, mode=mode, **options)
    assert isinstance(loaded, MaskedDrafter)
    return loaded


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return drafter("reference").model


def new_session(model: PreTrainedModel, run: dict[str, Any]) -> ReferenceSession:
    eos = torch.tensor([run.get("stop_token", 248)])
    request = DraftRequest(model, 512, eos_token_ids=eos)
    return ReferenceSession(model, SPEC, 256, request, threshold=run["threshold"])


@pytest.mark.parametrize("index", range(len(RUNS)))
@torch.no_grad()
def test_reference_mode_repeats_the_published_drafts(model: PreTrainedModel, index: int) -> None:
    run = RUNS[index]
    session = new_session(model, run)
    draft = draft_of(session, torch.tensor([run["prefix"]]), FirstThenOthers(run), 200)
    assert draft.token_ids[0].tolist() == run["draft"]
    assert draft.passes == run["num_forward_passes"]
    assert [list(map(int, one)) for one in session.passes] == run["passes"]
    torch.testing.assert_close(torch.tensor(session.recorded), torch.tensor(run["confidences"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("index", range(len(ROUNDS)))
@torch.no_grad()
def test_reference_mode_repeats_rounds_of_draft_and_accept(model: PreTrainedModel, index: int) -> None:
    """Drafts of every round equal the original's; passes too, except below 64 tokens with a reused (stale) prefix."""
    run = ROUNDS[index]
    session = new_session(model, run)
    text = list(run["prefix"])
    for one in run["rounds"]:
        assert len(text) == one["len"]
        if not run["reuse_prefill"]:
            session = new_session(model, run)
        draft = draft_of(session, torch.tensor([text]), FirstThenOthers(run), 200)
        assert draft.token_ids[0].tolist() == one["draft"]
        if not run["reuse_prefill"] or len(text) >= 64:
            assert draft.passes == one["num_forward_passes"]
        session.accept([one["accepted"]])
        text += [*one["draft"][: one["accepted"]], one["appended_token"]]


def test_fused_drafting_needs_fewer_passes_than_the_reference_and_accepts_as_many() -> None:
    """Fused drafting takes < 1.5 passes a round, the reference > 2.2, at over 80 % of its accepted length."""
    target = Qwen2ForCausalLM.from_pretrained(CHECKPOINT, config=drafter("fused").model.config, dtype=torch.float32)
    target.generation_config.eos_token_id = None
    reference = check_parity(target.eval(), drafter("reference"), 120, confidence_threshold=1.0)
    fused = check_parity(target, drafter("fused"), 120, confidence_threshold=1.0)
    assert fused.drafter_passes / fused.rounds < 1.5 < 2.2 < reference.drafter_passes / reference.rounds
    assert fused.mean_acceptance_length > 0.8 * reference.mean_acceptance_length


def test_reference_mode_fits_only_shifted_blocks() -> None:
    with pytest.raises(ValueError, match="Fast-dLLM v2"):
        drafter("reference", shift=0)
    with pytest.raises(ValueError, match="`mode` must be one of"):
        drafter("other")
