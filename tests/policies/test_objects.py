"""Length policies and verifiers of one's own, handed to `generate` as objects."""

from typing import Any

import pytest
import torch
from conftest import assisted, drafter, failfast, plain, prompt, target

import hf_failfast
from hf_failfast.decoding.verification import NAMED, Scores, choose_sampled
from hf_failfast.policies import POLICIES, ConfidenceThreshold, LengthPolicy
from hf_failfast.policies.confidence import FixedLength


class MeanConfidence(LengthPolicy):
    """Extends a draft while the mean of a chunk's confidences is high."""

    def __init__(self, chunk_length: int, max_draft_length: int, threshold: float = 0.0) -> None:
        super().__init__(chunk_length, max_draft_length)
        self.threshold = threshold
        self.rounds = 0

    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        return confidence.mean(dim=-1) >= self.threshold

    def observe(self, num_accepted: Any) -> None:
        self.rounds += 1


@pytest.mark.parametrize("method", [failfast, assisted])
def test_a_policy_of_ones_own(method: Any) -> None:
    """The object decides the lengths and hears of every round; the text is plain `generate`'s."""
    model, policy = target("qwen2"), MeanConfidence(3, 7)
    output = method(
        model,
        prompt(20),
        drafter("canvas_shift"),
        length_policy=policy,
        max_new_tokens=24,
        return_dict_in_generate=True,
    )
    assert torch.equal(output.sequences, plain(model, prompt(20), max_new_tokens=24))
    assert policy.rounds == output.speculation.rounds
    assert max(record.drafted for record in output.speculation.records) == 7


def test_a_policy_in_a_config_and_in_two_calls() -> None:
    """One object serves one call after the other."""
    model, config = target("qwen2"), hf_failfast.FailFastConfig(length_policy=FixedLength(5))
    for seed in (0, 1):
        ids = prompt(20, seed)
        output = failfast(model, ids, drafter("canvas_shift"), failfast_config=config, max_new_tokens=12)
        assert torch.equal(output, plain(model, ids, max_new_tokens=12))


def test_options_that_the_policy_does_not_read_are_refused() -> None:
    """Rejects a number of the chunk rule together with an object or with `goodput`, and names it."""
    with pytest.raises(ValueError, match=r"`length_policy=MeanConfidence` .* no use for \['chunk_length'\]"):
        failfast(target("qwen2"), prompt(9), drafter("canvas"), length_policy=MeanConfidence(3, 7), chunk_length=4)
    with pytest.raises(ValueError, match=r"`length_policy='goodput'` .* no use for \['confidence_threshold'\]"):
        failfast(target("qwen2"), prompt(9), drafter("canvas"), length_policy="goodput", confidence_threshold=0.4)


@pytest.mark.parametrize("value", ["mean", 3, MeanConfidence])
def test_what_is_no_policy_is_refused(value: Any) -> None:
    """Rejects an unknown name, a number, and a class instead of an object."""
    with pytest.raises(ValueError, match=r"`length_policy` must be one of \['confidence', 'goodput', 'diffuspec'\]"):
        hf_failfast.FailFastConfig(length_policy=value)


def test_the_named_ones_are_what_the_config_knows() -> None:
    """Every name of a policy or verifier is one that the config takes."""
    for name, kind in POLICIES.items():
        assert hf_failfast.FailFastConfig(length_policy=name).length_policy == name
        assert kind.for_pair is not LengthPolicy.for_pair
    for name in NAMED:
        assert hf_failfast.FailFastConfig(verifier=name).verifier == name
    assert isinstance(ConfidenceThreshold(hf_failfast.FailFastConfig()), LengthPolicy)


def test_a_verifier_of_ones_own() -> None:
    """The function is called in every round with the scores and a drawn draft."""
    calls = []

    def verifier(scores: Scores, draft_ids: torch.Tensor, draft_probs: torch.Tensor | None) -> torch.Tensor:
        calls.append((scores.values.shape[:2], draft_ids.shape, None if draft_probs is None else draft_probs.shape))
        return choose_sampled(scores)

    model, ids = target("qwen2"), prompt(20)
    torch.manual_seed(0)
    output = hf_failfast.generate(
        model,
        ids,
        assistant_model=drafter("canvas_shift"),
        verifier=verifier,
        do_sample=True,
        max_new_tokens=12,
        return_dict_in_generate=True,
    )
    assert output.sequences.shape == (1, 32)
    assert len(calls) == output.speculation.rounds
    assert all(scores == (1, drafted[1] + 1) for scores, drafted, _ in calls)
    assert all(probs is None or probs[:2] == drafted for _, drafted, probs in calls)
    assert any(probs is not None for *_, probs in calls)


def test_a_verifier_has_no_part_in_greedy_decoding() -> None:
    """Greedy text is plain `generate`'s whatever the verifier does."""

    def wrong(*_: Any) -> Any:
        raise AssertionError("called")

    model, ids = target("qwen2"), prompt(20)
    output = failfast(model, ids, drafter("canvas_shift"), verifier=wrong, max_new_tokens=12)
    assert torch.equal(output, plain(model, ids, max_new_tokens=12))
