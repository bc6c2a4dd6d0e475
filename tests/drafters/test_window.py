"""Drafters that see the end of a text only: the same drafts as from that part alone, in bounded slots."""

import copy
from typing import Any

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, saved_drafter, shared_drafter, target
from graph_support import Recorder
from sessions import draft_of, session_of
from transformers import DynamicCache

import hf_failfast
from hf_failfast.compatibility import CACHE
from hf_failfast.drafters import Conversation, DiffusionDrafter
from hf_failfast.engine.runner_pool import RunnerPool
from hf_failfast.policies.confidence import FixedLength

KINDS = ("canvas", "canvas_shift", "block_shift", "bidirectional")


def windowed(kind: str, window: int, model_type: str = "qwen2") -> DiffusionDrafter:
    result = copy.copy(shared_drafter() if kind == "shared" else drafter(kind, model_type))
    result.window = window
    return result


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_drafts_are_those_of_the_end_of_the_text(kind: str) -> None:
    """A session that has seen the whole text drafts what a fresh one does that is given the part in sight."""
    model, text = target("qwen2"), prompt(200)
    session = session_of(windowed(kind, 32), model, 400)
    fresh = drafter(kind)
    for length in range(20, 120, 3):
        draft = draft_of(session, text[:, :length], FixedLength(4), 50)
        seen = text[:, session.offsets[0] : length]
        assert seen.shape[1] <= 32
        expected = draft_of(session_of(fresh, model, 400), seen, FixedLength(4), 50)
        assert torch.equal(draft.token_ids, expected.token_ids)
        torch.testing.assert_close(draft.confidence, expected.confidence, atol=1e-4, rtol=1e-4)
        session.accept([0])


@pytest.mark.parametrize("kind", [*KINDS, "shared"])
@pytest.mark.parametrize("length", [9, 32, 33, 150])
def test_the_text_is_the_plain_one(kind: str, length: int) -> None:
    """Prompts shorter and longer than the window, and answers that outgrow it."""
    model = target("llama" if kind == "shared" else "qwen2")
    output = failfast(model, prompt(length), windowed(kind, 32), max_new_tokens=70, return_dict_in_generate=True)
    assert torch.equal(output.sequences, plain(model, prompt(length), max_new_tokens=70))
    assert output.speculation.drafted > 0


@pytest.mark.parametrize("kept", [3, 20, 30, 36])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_text_that_changes_before_what_is_in_sight(kind: str, kept: int) -> None:
    """Tokens taken back from before the window, at, and after its beginning: the next draft is that of a fresh session
    on the part in sight, whether the text is then longer or shorter than what was in sight."""
    model, session = target("qwen2"), session_of(windowed(kind, 32), target("qwen2"), 400)
    draft_of(session, prompt(40), FixedLength(4), 50)
    assert session.offsets == [24]
    session.accept([kept - 40])
    for length in (kept + 1, kept + 5):
        text = torch.cat([prompt(40)[:, :kept], prompt(20, seed=3)], dim=1)[:, :length]
        draft = draft_of(session, text, FixedLength(4), 50)
        seen = text[:, session.offsets[0] :]
        assert 0 < seen.shape[1] <= 32
        expected = draft_of(session_of(drafter(kind), model, 400), seen, FixedLength(4), 50)
        assert torch.equal(draft.token_ids, expected.token_ids)
        torch.testing.assert_close(draft.confidence, expected.confidence, atol=1e-4, rtol=1e-4)
        session.accept([0])


def test_slots_are_bounded() -> None:
    """A long text takes the slots of two windows, and no draft is longer than a window."""
    session = session_of(windowed("canvas_shift", 32), target("qwen2"), 4000)
    for length in (40, 900, 3000):
        draft_of(session, prompt(length), FixedLength(60), 100)
        session.accept([0])
        assert max(layer.keys.shape[2] for layer in session.cache.layers) <= 2 * 32 + 2
        assert session.lengths == [16]


def test_a_batch_of_different_lengths() -> None:
    """Sequences outgrow the window one by one, end, and leave the batch."""
    model, lengths = target("qwen2"), (70, 9, 31)
    ids = torch.zeros(3, 70, dtype=torch.long)
    mask = torch.zeros(3, 70, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, 70 - length :], mask[row, 70 - length :] = prompt(length, row)[0], 1
    end = plain(model, prompt(9, 1), max_new_tokens=40)[0, 30].item()
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 60, "eos_token_id": end, "pad_token_id": 0}
    expected = plain(model, ids, **options)
    assert torch.equal(failfast(model, ids, windowed("canvas_shift", 32), **options), expected)


def test_a_conversation() -> None:
    """Turns go on in the window; a text that departs before what is in sight is read anew."""
    model, conversation = target("qwen2"), Conversation(windowed("canvas_shift", 32))
    cache, text = DynamicCache(config=model.config), prompt(20)
    for turn in range(4):
        expected = plain(model, text, max_new_tokens=25)
        text = failfast(model, text, conversation, **{CACHE: cache}, max_new_tokens=25)
        assert torch.equal(text, expected)
        text = torch.cat([text, prompt(7, turn + 1)], dim=1)
    other = prompt(40, 9)
    assert torch.equal(failfast(model, other, conversation, max_new_tokens=25), plain(model, other, max_new_tokens=25))


def test_replayed_graphs() -> None:
    """Restarted sequences are read with graphs of the same shapes, and the text stays."""
    model, used = target("qwen2"), windowed("canvas_shift", 32)
    used.runners = RunnerPool("cuda_graphs", Recorder())
    output = failfast(model, prompt(50), used, max_new_tokens=80)
    assert torch.equal(output, plain(model, prompt(50), max_new_tokens=80))


@pytest.mark.parametrize("policy", ["confidence", "goodput"])
def test_sampling_and_goodput(policy: str) -> None:
    """Both policies count what the drafter sees; drawn drafts come with their distributions."""
    torch.manual_seed(0)
    output = hf_failfast.generate(
        target("qwen2"),
        prompt(50),
        assistant_model=windowed("canvas_shift", 32),
        do_sample=True,
        verifier="rejection",
        length_policy=policy,
        max_new_tokens=40,
    )
    assert output.shape == (1, 90)


def test_own_drafters_have_one_by_default() -> None:
    """Checkpoints of the trainer see what they learned from; others see all; the argument wins."""
    assert hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER).window == 256
    assert hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER, drafter_window=0).window == 0
    assert hf_failfast.load_drafter(saved_drafter("canvas_shift")).window == 0
    assert hf_failfast.load_drafter(saved_drafter("canvas_shift"), drafter_window=64).window == 64


@pytest.mark.parametrize("window", [-1, 3, True, 64.0])
def test_windows_that_hold_no_draft_are_refused(window: Any) -> None:
    """The error names the field, its bound and the value."""
    with pytest.raises(ValueError, match=r"`drafter_window` must be 0 or an integer >= 16, but is"):
        hf_failfast.load_drafter(saved_drafter("canvas_shift"), drafter_window=window)
