"""Config, length policy, verification and stop rules, on literal values."""

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria, StoppingCriteriaList

from hf_failfast import ConfidenceThreshold, FailFastConfig, FixedLength
from hf_failfast.decoding.stopping import StopRules
from hf_failfast.decoding.verification import Scores, choose_by_rejection, choose_greedy
from hf_failfast.engine import kernels
from hf_failfast.engine.runner import best_tokens

# Config


def test_defaults_are_the_papers() -> None:
    """The defaults are FailFast's."""
    config = FailFastConfig()
    assert (config.confidence_threshold, config.chunk_length, config.max_draft_length) == (0.45, 10, 60)
    assert config.length_policy == "confidence"
    assert FailFastConfig.field_names()[:3] == ("confidence_threshold", "chunk_length", "max_draft_length")


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf"), True, None, "0.5", torch.tensor(0.5)])
def test_bad_threshold(value: Any) -> None:
    """Rejects thresholds that are not numbers in [0, 1]."""
    with pytest.raises(ValueError, match=r"`confidence_threshold` must be a number in \[0, 1\], but is"):
        FailFastConfig(confidence_threshold=value)


@pytest.mark.parametrize("name", ["chunk_length", "max_draft_length"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "3"])
def test_bad_lengths(name: str, value: Any) -> None:
    """Rejects lengths that are not integers >= 1."""
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1, but is {value!r}"):
        FailFastConfig(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verifier": "typical"}, r"`verifier` must be one of \['sample_and_match', 'rejection'\], but is 'typical'"),
        ({"draft_temperature": 0.5}, "`draft_temperature`=0.5 needs `verifier='rejection'`"),
        ({"verifier": "rejection", "draft_temperature": 0}, "`draft_temperature` must be a finite number > 0 .* is 0"),
        ({"verifier": "rejection", "draft_temperature": True}, "`draft_temperature` must be .* but is True"),
        ({"verifier": "rejection", "draft_temperature": float("nan")}, "`draft_temperature` must be .* but is nan"),
    ],
)
def test_bad_verifier(options: dict[str, Any], message: str) -> None:
    """Rejects unknown verifiers, and draft temperatures that are out of range or never read."""
    with pytest.raises(ValueError, match=message):
        FailFastConfig(**options)


def test_bad_length_policy() -> None:
    """Rejects unknown length policies."""
    with pytest.raises(
        ValueError, match=r"`length_policy` must be one of \['confidence', 'goodput', 'diffuspec'\], but is 'good'"
    ):
        FailFastConfig(length_policy="good")  # type: ignore[arg-type]


def test_edges_are_allowed() -> None:
    """Takes the bounds themselves, and numpy's numbers."""
    FailFastConfig(0, 1, 1)
    FailFastConfig(1, np.int64(3), np.int32(4))
    FailFastConfig(np.float32(0.5))


def test_with_options() -> None:
    """Options make a checked copy; unknown ones are refused and the original is frozen."""
    config = FailFastConfig()
    assert config.with_options({"chunk_length": 3}) == FailFastConfig(chunk_length=3)
    assert config.with_options({}) == config == FailFastConfig()
    with pytest.raises(ValueError, match=r"Unknown FailFast option \['chunk'\]; the options are \['confidence_thresh"):
        config.with_options({"chunk": 3})
    with pytest.raises(ValueError, match="`chunk_length`"):
        config.with_options({"chunk_length": 0})
    with pytest.raises(FrozenInstanceError):
        config.chunk_length = 3  # type: ignore[misc]


# Length policy


@pytest.mark.parametrize(
    ("confidence", "extends"),
    [([0.5, 0.9], True), ([0.9, 0.49], False), ([0.49, 0.9], False), ([float("nan"), 0.9], False), ([0.5], True)],
)
def test_confidence_threshold(confidence: list[float], extends: bool) -> None:
    """A draft is extended if every confidence reaches the threshold; NaN does not."""
    decision = ConfidenceThreshold(FailFastConfig(0.5)).should_extend(torch.tensor([confidence]))
    assert decision.dtype == torch.bool
    assert decision.shape == (1,)
    assert bool(decision) is extends


def test_fixed_length() -> None:
    """A fixed length is both chunk and cap, and never extends."""
    policy = FixedLength(7)
    assert (policy.chunk_length, policy.max_draft_length) == (7, 7)
    assert not bool(policy.should_extend(torch.ones(1, 7)))


# Verification


def scores(*token_ids: int) -> Scores:
    """Scores of 6 tokens at k + 1 positions, the given ids the best."""
    return whole(torch.nn.functional.one_hot(torch.tensor([token_ids]), 6).float())


def whole(values: torch.Tensor) -> Scores:
    """Scores of the whole vocabulary."""
    return Scores(values, torch.arange(values.shape[-1]).expand_as(values))


@pytest.mark.parametrize(
    ("draft", "own", "accepted"),
    [
        ([], [3], 0),
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3], [0, 2, 3, 4], 0),
        ([1, 2, 3], [1, 0, 3, 4], 1),  # the right token after a wrong one does not count
        ([1, 2, 3], [1, 2, 0, 4], 2),
        ([5, 5], [5, 5, 5], 2),
    ],
)
def test_acceptance(draft: list[int], own: list[int], accepted: int) -> None:
    """Accepts the tokens before the first wrong one and emits one more."""
    token_ids = choose_greedy(scores(*own))
    assert token_ids.tolist() == [own]
    draft_ids = torch.tensor([draft], dtype=torch.long)
    (row,) = kernels.accept(draft_ids, draft_ids.float(), token_ids, [len(draft)], [10], [False], 99, None)
    assert (row.accepted, row.emitted) == (accepted, accepted + 1)


def test_ties_break_as_argmax_does() -> None:
    """Among equal scores the lowest id is chosen, as by argmax."""
    tied = torch.zeros(1, 2, 6)
    tied[0, 0, [2, 4]] = 1.0
    for token_ids in (choose_greedy(whole(tied)), *best_tokens(tied), *best_tokens(tied.bfloat16())):
        assert token_ids.tolist() == tied.argmax(dim=-1).tolist() == [[2, 0]]


def test_rejection_of_literal_drafts() -> None:
    """Accepts a draft where q equals p; replaces one that p, or the shortlist, forbids by a token of p."""
    certain = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])  # p of the draft's row, and of the row after it
    same = choose_by_rejection(whole(certain.log()), torch.tensor([[1]]), certain[:, :1])
    assert same.tolist() == [[1, 2]]
    other = choose_by_rejection(whole(certain.log()), torch.tensor([[0]]), torch.tensor([[[1.0, 0.0, 0.0]]]))
    assert other.tolist() == [[1, 2]]
    nothing = choose_by_rejection(whole(certain.log()), torch.tensor([[0]]), torch.zeros(1, 1, 3))
    assert nothing.tolist() == [[1, 2]]
    shortlist = Scores(torch.zeros(1, 2, 1), torch.tensor([[[2], [0]]]))
    assert choose_by_rejection(shortlist, torch.tensor([[1]]), certain[:, :1]).tolist() == [[2, 0]]


@pytest.mark.parametrize("rows", [1, 3])
def test_rejection_accepts_with_the_overlap_of_p_and_q(rows: int) -> None:
    """Each row accepts with the overlap of its own p and q, and emits its own p."""
    torch.manual_seed(0)
    count = 20_000
    p, q = torch.rand(2, rows, 1, 5).softmax(dim=-1)[0], torch.rand(rows, 1, 5).softmax(dim=-1)
    drafts = torch.stack([torch.multinomial(q[row, 0], count, replacement=True) for row in range(rows)])
    chosen = choose_by_rejection(
        whole(p.log().repeat_interleave(count, dim=0)), drafts.view(-1, 1), q.repeat_interleave(count, dim=0)
    ).view(rows, count)
    overlap = torch.minimum(p, q).sum(dim=-1)[:, 0]
    torch.testing.assert_close((chosen == drafts).float().mean(dim=1), overlap, atol=0.015, rtol=0)
    for row in range(rows):
        frequency = torch.bincount(chosen[row], minlength=5) / count
        torch.testing.assert_close(frequency, p[row, 0], atol=0.015, rtol=0)


# Stop rules


def rules(*criteria: Any, max_length: int = 100) -> StopRules:
    return StopRules(StoppingCriteriaList(criteria), max_length)


def test_ends() -> None:
    """A text ends at an end-of-sequence id or at the maximal length."""
    stops = rules(MaxLengthCriteria(20), EosTokenCriteria(torch.tensor([7, 9])))
    assert [stops.ends(token_id, 10) for token_id in (1, 7, 8, 9)] == [False, True, False, True]
    assert [stops.ends(1, length) for length in (19, 20, 21)] == [False, True, True]
    assert stops.eos_token_ids is not None
    assert stops.eos_token_ids.tolist() == [7, 9]
    assert stops.max_length == 20


def test_no_end_of_sequence() -> None:
    """Without an end-of-sequence id only the maximal length ends a text."""
    stops = rules()
    assert stops.eos_token_ids is None
    assert not stops.ends(0, 99)
    assert stops.ends(0, 100)


def test_what_is_walked() -> None:
    """Subclasses and other criteria are walked; the built-in ones are not."""

    class Patient(EosTokenCriteria):
        pass

    class Longer(MaxLengthCriteria):
        pass

    own = [MaxTimeCriteria(9.0), Patient(torch.tensor([3])), Longer(5)]
    stops = rules(MaxLengthCriteria(20), EosTokenCriteria(torch.tensor([7])), *own)
    assert list(stops.walked) == own
    assert stops.max_length == 20
    assert not stops.ends(3, 10)
