"""Goodput cuts drawn drafts, and the text still follows the target's distribution."""

import importlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sampling_support import SIZE, Pair, chi_square, draw, enumerate_distribution, small_pair

from hf_failfast.policies import POLICIES
from hf_failfast.policies.base import Decision, RoundCosts
from hf_failfast.policies.goodput import Goodput

generate_module = importlib.import_module("hf_failfast.generate")  # the attribute of that name is the function

SAMPLING = {"temperature": 1.3, "top_k": 0}
COSTS = {
    "cheap rows": RoundCosts(((1, 0.05), (32, 0.1)), ((0, 1.0), (31, 1.1))),
    "dear rows": RoundCosts(((1, 0.05), (32, 0.1)), ((0, 1.0), (1, 1.3), (31, 10.3))),
}


class OneByOne(Goodput):
    """Chunks of one token: all confidences but the first depend on tokens that were drawn."""

    def _best_chunk_length(self) -> int:
        return 1


class Peeking(OneByOne):
    """Verifies a token only where the drafter is sure of the token after it."""

    def cut(self, lengths: Sequence[int]) -> list[int]:
        later = [[confidence >= 0.5 for _, confidence in row.tokens[1:]] for row in self._rows]
        sure = [[*row, False].index(False) if not all(row) else len(row) + 1 for row in later]
        return [min(pair) for pair in zip(super().cut(lengths), sure, strict=True)]


class Looking(Goodput):
    """Verifies no token with a high id, nor any token after it."""

    def decide(self, token_ids: torch.Tensor, *arguments: Any) -> Decision:
        self._low = (token_ids < SIZE // 2).long().cumprod(dim=1).sum(dim=1).tolist()
        return super().decide(token_ids, *arguments)

    def cut(self, lengths: Sequence[int]) -> list[int]:
        return [min(pair) for pair in zip(super().cut(lengths), self._low, strict=True)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return small_pair(str(tmp_path_factory.mktemp("drafter")))


def fit(pair: Pair, policy: type[Goodput], costs: RoundCosts, monkeypatch: pytest.MonkeyPatch) -> float:
    """p value of the enumerated distribution, given samples with drafts drawn hotter and cut by the policy."""
    monkeypatch.setattr(generate_module, "measured_costs", lambda *_: costs)
    monkeypatch.setitem(POLICIES, "goodput", policy)
    options: dict[str, Any] = {"verifier": "rejection", "draft_temperature": 2.5, "length_policy": "goodput"}
    counts = draw(pair, pair.drafter(), 3000, chunk_length=None, **options, **SAMPLING)
    return chi_square(counts, enumerate_distribution(pair, **SAMPLING))


@pytest.mark.parametrize("policy", [Goodput, OneByOne])
@pytest.mark.parametrize("costs", COSTS)
def test_samples_follow_the_targets_distribution(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, policy: type[Goodput], costs: str
) -> None:
    """Samples follow the target's distribution, since what is verified does not depend on what was drawn."""
    assert fit(pair, policy, COSTS[costs], monkeypatch) > 1e-3


@pytest.mark.parametrize("policy", [Peeking, Looking])
def test_the_proof_rejects_a_policy_that_peeks(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, policy: type[Goodput]
) -> None:
    """The test rejects cuts by the drawn token, or by confidences that depend on it: they favour some tokens."""
    assert fit(pair, policy, COSTS["cheap rows"], monkeypatch) < 1e-6
