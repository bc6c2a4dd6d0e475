"""The chunk rule, ids that are never proposed, and drafters that borrow the target's embedding and head."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import (
    DRAFTERS,
    LOOPS,
    VOCAB_SIZE,
    drafter,
    plain,
    prompt,
    shared_drafter,
    target,
    tiny_model,
)
from counters import record_feeds
from scripted import ScriptedDrafter
from sessions import draft_of, session_of

from hf_failfast import ConfidenceThreshold, FailFastConfig, FixedLength, load_drafter
from hf_failfast.drafters import Draft
from hf_failfast.drafters.denoising import MostLikely
from hf_failfast.drafters.masked.session import MaskedDrafter
from hf_failfast.policies.base import LengthPolicy


def policy(tau: float = 0.45, chunk_length: int = 10, max_draft_length: int = 60) -> ConfidenceThreshold:
    return ConfidenceThreshold(FailFastConfig(tau, chunk_length, max_draft_length))


def draft_by_script(
    confidence: Callable[[int], float],
    rule: LengthPolicy,
    max_tokens: int = 1000,
    eos: Sequence[int] = (),
) -> Draft:
    """One draft after a prompt of 5 tokens; draft token i is `50 + i`."""
    reference = torch.cat([prompt(5), torch.arange(50, 200)[None]], dim=1)
    script = ScriptedDrafter(reference, confidence=confidence)
    session = session_of(script, target("llama"), 300, torch.tensor(eos) if eos else None)
    draft = draft_of(session, reference[:, :5], rule, max_tokens)
    assert draft.token_ids[0].tolist() == list(range(50, 50 + len(draft)))
    assert draft.confidence.shape == draft.token_ids.shape
    return draft


# The chunk rule


@pytest.mark.parametrize(("first_unsure", "length"), [(0, 10), (9, 10), (10, 20), (19, 20), (25, 30), (59, 60)])
def test_a_draft_grows_while_the_newest_chunk_is_sure(first_unsure: int, length: int) -> None:
    """Drafting ends with the first chunk that has an unsure token, and keeps that chunk."""
    draft = draft_by_script(lambda index: 0.1 if index == first_unsure else 0.9, policy())
    assert (len(draft), draft.passes) == (length, length // 10)


def test_only_the_newest_chunk_counts() -> None:
    """A policy sees the confidences of the newest chunk only."""
    seen = []

    class Spy(LengthPolicy):
        def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
            assert type(confidence) is torch.Tensor
            seen.append(confidence[0].tolist())
            return torch.tensor(len(seen) < 3)

    draft = draft_by_script(lambda index: index / 100, Spy(4, 60))
    assert len(draft) == 12
    assert seen == [pytest.approx([i / 100 for i in range(k, k + 4)]) for k in (0, 4, 8)]


@pytest.mark.parametrize(("confidence", "length"), [(0.45, 60), (0.4499, 10), (float("nan"), 10)])
def test_the_threshold_is_inclusive_and_nan_is_unsure(confidence: float, length: int) -> None:
    """A confidence equal to the threshold extends the draft; NaN ends it."""
    exact = torch.tensor(0.45).item() if confidence == 0.45 else confidence
    assert len(draft_by_script(lambda _: exact, policy(tau=torch.tensor(0.45).item()))) == length


@pytest.mark.parametrize(
    ("chunk_length", "cap", "chunks"), [(10, 25, [10, 10, 5]), (10, 4, [4]), (3, 7, [3, 3, 1]), (1, 2, [1, 1])]
)
def test_cap_means_cap(chunk_length: int, cap: int, chunks: list[int]) -> None:
    """The last chunk is cut at N_max and at the remaining length of the text."""
    for rule, room in ((policy(0.45, chunk_length, cap), 1000), (policy(0.45, chunk_length, 500), cap)):
        draft = draft_by_script(lambda _: 1.0, rule, max_tokens=room)
        assert (len(draft), draft.passes) == (cap, len(chunks))


@pytest.mark.parametrize("room", [0, -1])
def test_no_room_no_pass(room: int) -> None:
    """Without room the draft is empty and costs no pass."""
    draft = draft_by_script(lambda _: 1.0, policy(), max_tokens=room)
    assert (len(draft), draft.passes, draft.host_reads) == (0, 0, 0)


@pytest.mark.parametrize("index", [0, 3, 9, 10, 14, 24])
def test_drafting_ends_after_an_end_of_sequence(index: int) -> None:
    """The end of sequence is the draft's last token, and no further chunk is drafted."""
    draft = draft_by_script(lambda _: 1.0, policy(0.45, 10, 25), eos=[50 + index, 50 + index + 2])
    assert (len(draft), draft.passes) == (index + 1, index // 10 + 1)


def test_fixed_length_never_extends() -> None:
    """A draft of fixed length is one chunk, however sure."""
    assert len(draft_by_script(lambda _: 1.0, FixedLength(7))) == 7


@pytest.mark.parametrize("kind", ["canvas", "canvas_shift", "bidirectional", "bidirectional_shift"])
def test_one_pass_per_chunk(kind: str) -> None:
    """Each chunk of a canvas or bidirectional drafter takes one pass."""
    session = session_of(drafter(kind), target("qwen2"), 200)
    with record_feeds(drafter(kind).model) as feeds, torch.no_grad():
        draft = draft_of(session, prompt(33), policy(tau=0.0, max_draft_length=40), 100)
    assert (len(draft), draft.passes, len(feeds)) == (40, 4, 4)


def test_passes_of_a_block_causal_chunk() -> None:
    """A chunk that crosses a block's edge takes one pass per block it touches."""
    session = session_of(drafter("block_shift"), target("qwen2"), 200)
    with record_feeds(drafter("block_shift").model) as feeds, torch.no_grad():
        draft = draft_of(session, prompt(20), FixedLength(10), 100)  # positions 20 to 29: blocks 16-23 and 24-31
    assert (len(draft), draft.passes, len(feeds)) == (10, 2, 2)
    assert [feed.positions[-1] for feed in feeds] == [23, 31]


# Ids that are never proposed


@pytest.mark.parametrize("kind", DRAFTERS)
def test_mask_and_padding_ids_are_never_proposed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask and padding ids are never drafted, even where the head prefers them; they lower the confidence."""
    body = tiny_model("qwen2", vocab_size=128, tie_word_embeddings=True)
    favourites = [7, *range(VOCAB_SIZE, 128)]  # 7 is the mask here
    with torch.no_grad():
        body.get_input_embeddings().weight[favourites] *= 50
    body.save_pretrained(tmp_path)
    loaded = load_drafter(tmp_path, mask_token_id=7, dtype=torch.float32, **DRAFTERS[kind])
    assert isinstance(loaded, MaskedDrafter)
    session = session_of(loaded, target("qwen2"), 200)
    proposed, unrestricted = [], []
    choose = MostLikely.__call__

    def spy(self: MostLikely, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        unrestricted.extend(logits.argmax(-1).flatten().tolist())
        probability = logits.double().softmax(-1)
        ids, confidence = choose(self, logits)
        expected = probability.gather(-1, ids[..., None])[..., 0].float()
        torch.testing.assert_close(confidence, expected, atol=1e-6, rtol=1e-4)  # forbidden ids count as doubt
        return ids, confidence

    monkeypatch.setattr(MostLikely, "__call__", spy)
    with torch.no_grad():
        for seed in range(8):
            draft = draft_of(session, prompt(20, seed), FixedLength(10), 100)
            session.cache.rollback(0)
            proposed += draft.token_ids[0].tolist()
            assert draft.confidence.max() < 1
    assert set(unrestricted) & set(favourites), "the head does not prefer what it may not propose"
    assert not set(proposed) & set(favourites)


# Drafters that borrow the target's embedding and head


@pytest.mark.parametrize("every", [None, 1, 3])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_drafter_between_the_targets_embedding_and_head(loop: str, every: int | None) -> None:
    """A drafter with the target's embedding and head drafts ids of its own vocabulary, and is accepted."""
    model, proposer = target("llama"), shared_drafter(every)
    options = {"max_new_tokens": 30, "return_dict_in_generate": True}
    output = LOOPS[loop](model, prompt(20), proposer, confidence_threshold=0.02, chunk_length=4, **options)
    reference = plain(model, prompt(20), max_new_tokens=30)
    assert torch.equal(output.sequences, reference)
    first_is_possible = [every is None or token % every == 0 for token in reference[0, 20:].tolist()]
    assert output.speculation.accepted >= (sum(first_is_possible) // 2 if every == 3 else 12)
    session = session_of(proposer, model, 100)
    with torch.no_grad():
        draft = draft_of(session, prompt(33), FixedLength(20), 50)
    assert all(token < VOCAB_SIZE and token % (every or 1) == 0 for token in draft.token_ids[0].tolist())


def test_a_reduced_vocabulary_changes_nothing_but_the_choice() -> None:
    """A reduced vocabulary that holds every id gives the same draft as the whole one."""
    model = target("llama")
    with torch.no_grad():
        whole = draft_of(session_of(shared_drafter(), model, 100), prompt(33), FixedLength(20), 50)
        same = draft_of(session_of(shared_drafter(1), model, 100), prompt(33), FixedLength(20), 50)
    assert whole.token_ids.tolist() == same.token_ids.tolist()
    torch.testing.assert_close(whole.confidence, same.confidence)


def test_a_borrowed_embedding_of_another_width_is_refused() -> None:
    """Refuses a target whose embedding has another width, and names both widths."""
    with pytest.raises(ValueError, match="embedding of width 32, but the target's is 64 wide"):
        session_of(shared_drafter(), tiny_model("llama", hidden_size=64), 100)
