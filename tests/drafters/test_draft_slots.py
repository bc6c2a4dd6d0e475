"""The K/V that a session keeps between passes: each token read once, rolled back, equal to a fresh session's."""

import functools

import pytest
import torch
from conftest import (
    DRAFTERS,
    MASK_ID,
    VOCAB_SIZE,
    drafter,
    failfast,
    prompt,
    shared_drafter,
    target,
)
from counters import Feed, record_feeds
from hypothesis import given, settings
from hypothesis import strategies as st
from sessions import draft_of, session_of

from hf_failfast import ConfidenceThreshold, FailFastConfig, FixedLength
from hf_failfast.drafters.masked.session import MaskedDrafter

BLOCK = 8


def clean_reads(feeds: list[Feed], text: list[int]) -> list[list[int]]:
    """Per forward, the positions fed with the text's own token after slots that hold the text's own prefix."""
    slots: list[int] = []
    reads = []
    for feed in feeds:
        start = feed.positions[0]
        assert start <= len(slots), "a slot was skipped"
        slots[start:] = feed.token_ids
        right = 0
        while right < min(len(slots), len(text)) and slots[right] == text[right]:
            right += 1
        reads.append(list(range(start, right)))
    return reads


def test_the_target_reads_every_token_once() -> None:
    """The target reads the prompt and every accepted token once."""
    model, proposer = target("qwen2"), drafter("canvas_shift")
    options = {"confidence_threshold": 0.02, "chunk_length": 4, "max_draft_length": 12}
    with record_feeds(model) as feeds:
        output = failfast(model, prompt(37), proposer, max_new_tokens=60, return_dict_in_generate=True, **options)
    text, stats = output.sequences[0].tolist(), output.speculation
    assert 10 < stats.accepted < stats.drafted
    assert sum(clean_reads(feeds, text), []) == list(range(len(text) - 1))
    assert sum(len(feed.token_ids) for feed in feeds) == 37 + stats.drafted + stats.rounds - 1


def grow_text(kind: str) -> tuple[list[int], list[Feed], int]:
    """Twelve rounds that accept 0 to 12 tokens: (text, the drafter's feeds, tokens known to the last draft)."""
    proposer, text = drafter(kind), prompt(37)
    session = session_of(proposer, target("qwen2"), 400)
    with record_feeds(proposer.model) as feeds, torch.no_grad():
        for accepted in (0, 12, 5, 1, 4, 8, 9, 12, 12, 3, 0, 7):
            draft = draft_of(session, text, ConfidenceThreshold(FailFastConfig(0.0, 4, 12)), 300)
            assert len(draft) == 12
            session.accept([accepted])
            text = torch.cat([text, draft.token_ids[:, :accepted], torch.tensor([[accepted]])], dim=1)
        known = text.shape[1] - accepted - 1  # the last round read all that was accepted before it
    return text[0].tolist(), feeds, known


@pytest.mark.parametrize("kind", ["canvas", "canvas_shift"])
def test_a_canvas_drafter_reads_every_token_once(kind: str) -> None:
    """A canvas drafter reads the prompt and every accepted token once."""
    text, feeds, known = grow_text(kind)
    reads = sum(clean_reads(feeds, text), [])
    assert reads == list(range(len(reads)))
    assert len(reads) >= known


@pytest.mark.parametrize("kind", ["block", "block_shift"])
def test_a_block_causal_drafter_reads_a_complete_block_once(kind: str) -> None:
    """A block-causal drafter reads the tokens of complete blocks once; only the unfinished block repeats."""
    text, feeds, known = grow_text(kind)
    complete: list[int] = []
    for feed, reads in zip(feeds, clean_reads(feeds, text), strict=True):
        assert feed.positions[0] % BLOCK == 0
        complete += [position for position in reads if position < (reads[-1] + 1) // BLOCK * BLOCK]
    assert complete == list(range(len(complete)))
    assert len(complete) >= known // BLOCK * BLOCK


@functools.cache
def session_drafter(name: str) -> MaskedDrafter:
    if name == "shared":
        proposer = shared_drafter(3)
        assert isinstance(proposer, MaskedDrafter)
        return proposer
    kind, _, family = name.partition("@")
    loaded = drafter(kind, family or "qwen2", seed=3)
    assert isinstance(loaded, MaskedDrafter)
    return loaded


@pytest.mark.parametrize("name", [*DRAFTERS, "canvas_shift@mistral", "canvas@gemma2", "block_shift@gpt2", "shared"])
@settings(max_examples=12)
@given(
    length=st.integers(1, 40),
    tau=st.sampled_from([0.0, 0.05, 0.1, 1.0]),
    chunk_length=st.sampled_from([1, 3, 8, 10]),
    rounds=st.lists(st.tuples(st.floats(0, 1), st.integers(0, VOCAB_SIZE - 1)), min_size=1, max_size=5),
)
def test_slots_give_what_a_fresh_session_gives(
    name: str, length: int, tau: float, chunk_length: int, rounds: list[tuple[float, int]]
) -> None:
    """Over rounds of draft and accept, every draft equals a fresh session's."""
    proposer, model = session_drafter(name), target("llama")
    rule = ConfidenceThreshold(FailFastConfig(tau, chunk_length, 20))
    session = session_of(proposer, model, 200)
    text = prompt(length)
    with torch.no_grad():
        for share, bonus in rounds:
            draft = draft_of(session, text, rule, 20)
            fresh = draft_of(session_of(proposer, model, 200), text, rule, 20)
            assert draft.token_ids.tolist() == fresh.token_ids.tolist()
            torch.testing.assert_close(draft.confidence, fresh.confidence, atol=1e-4, rtol=0)
            accepted = round(share * len(draft))
            session.accept([accepted])
            text = torch.cat([text, draft.token_ids[:, :accepted], torch.tensor([[bonus]])], dim=1)


def full_attention_draft(proposer: MaskedDrafter, text: torch.Tensor, wanted: int) -> torch.Tensor:
    """One pass of a canvas or bidirectional drafter without slots: an explicit mask over the whole text."""
    is_canvas = proposer.spec.attention == "causal_canvas"
    noise = wanted - proposer.spec.shift * is_canvas  # a bidirectional model sees the number of masks
    ids = torch.cat([text, torch.full((1, noise), MASK_ID)], dim=1)
    size, known = ids.shape[1], text.shape[1]
    visible = torch.ones(size, size, dtype=torch.bool)
    if is_canvas:
        visible[:known] = torch.ones(known, size, dtype=torch.bool).tril()
    model = proposer.model
    logits = model(input_ids=ids, attention_mask=visible[None, None], use_cache=False, logits_to_keep=0).logits
    logits[..., VOCAB_SIZE:] = -torch.inf
    return logits[:, known - proposer.spec.shift :].argmax(-1)[:, :wanted]


@pytest.mark.parametrize("kind", ["canvas", "canvas_shift", "bidirectional", "bidirectional_shift"])
def test_a_pass_is_one_forward_under_the_mask_of_its_attention(kind: str) -> None:
    """A pass equals one forward under the explicit mask of the drafter's attention."""
    proposer = session_drafter(kind)
    with torch.no_grad():
        for length in (1, 2, 17, 33):
            draft = draft_of(session_of(proposer, target("qwen2"), 100), prompt(length), FixedLength(6), 50)
            assert draft.token_ids.tolist() == full_attention_draft(proposer, prompt(length), 6).tolist()
