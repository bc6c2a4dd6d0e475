"""Scores equal those of transformers' own processors, on the whole vocabulary or on a shortlist."""

from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as lp

from hf_failfast.decoding.token_choice import TokenChoice

STACKS: dict[str, list[Any]] = {
    "top-k": [lp.TopKLogitsWarper(50)],
    "top-1": [lp.TopKLogitsWarper(1)],
    "temperature and top-k": [lp.TemperatureLogitsWarper(0.7), lp.TopKLogitsWarper(50)],
    "two temperatures": [lp.TemperatureLogitsWarper(0.3), lp.TemperatureLogitsWarper(7.0), lp.TopKLogitsWarper(9)],
    "top-p": [lp.TemperatureLogitsWarper(0.7), lp.TopKLogitsWarper(50), lp.TopPLogitsWarper(0.9)],
    "min-p": [lp.TopKLogitsWarper(20), lp.MinPLogitsWarper(0.1)],
    "typical": [lp.TopKLogitsWarper(20), lp.TypicalLogitsWarper(0.8)],
    "epsilon": [lp.TopKLogitsWarper(40), lp.EpsilonLogitsWarper(0.02)],
    "eta": [lp.TopKLogitsWarper(40), lp.EtaLogitsWarper(0.02)],
    "normalised": [lp.TemperatureLogitsWarper(2.0), lp.TopKLogitsWarper(30), lp.LogitNormalization()],
    "top-k twice": [lp.TopKLogitsWarper(30), lp.TopKLogitsWarper(10), lp.TopPLogitsWarper(0.8)],
    "suppressed": [lp.SuppressTokensLogitsProcessor(range(0, 900, 2)), lp.TopKLogitsWarper(12)],
    "min-p before": [lp.MinPLogitsWarper(0.01), lp.TemperatureLogitsWarper(1.5), lp.TopKLogitsWarper(25)],
    "everything": [
        lp.TemperatureLogitsWarper(0.7),
        lp.TopKLogitsWarper(60),
        lp.TopPLogitsWarper(0.95),
        lp.MinPLogitsWarper(0.01),
        lp.TypicalLogitsWarper(0.95),
        lp.EpsilonLogitsWarper(1e-3),
        lp.EtaLogitsWarper(1e-3),
    ],
}
LOGITS = {
    "apart": lambda: torch.randn(2, 5, 1000) * 3,
    "bfloat16": lambda: (torch.randn(2, 5, 1000) * 3).bfloat16().float(),  # many ties, a few at the k-th place
    "coarse": lambda: torch.randn(2, 5, 1000).mul(2).round(),  # more ties than a shortlist holds
    "flat": lambda: torch.zeros(2, 5, 1000),
    "peaked": lambda: torch.randn(2, 5, 1000) * 30,
    "banned": lambda: torch.randn(2, 5, 1000).masked_fill(torch.arange(1000) >= 7, -torch.inf),
}


def spread(scores: Any, num_tokens: int) -> torch.Tensor:
    """Scores over the whole vocabulary."""
    values, token_ids = scores
    whole = torch.full((*values.shape[:2], num_tokens), -torch.inf)
    return whole.scatter(-1, token_ids, values)


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("name", STACKS)
def test_a_shortlist_gives_the_processors_own_scores(name: str, kind: str) -> None:
    """A shortlist keeps the tokens that transformers keeps, ties included, with the same scores."""
    torch.manual_seed(0)
    logits, prefix_ids = LOGITS[kind](), torch.randint(1000, (2, 7))
    processors = LogitsProcessorList(STACKS[name])
    expected = torch.stack([processors(prefix_ids, logits[:, row].clone()) for row in range(5)], dim=1)
    before = logits.clone()
    actual = spread(TokenChoice(processors, do_sample=True).scores(prefix_ids, logits), 1000)
    assert torch.equal(logits, before), "the raw logits were changed"
    assert torch.equal(actual > -torch.inf, expected > -torch.inf)
    torch.testing.assert_close(actual.softmax(dim=-1), expected.softmax(dim=-1), atol=1e-6, rtol=1e-5)
    kept = TokenChoice(processors, do_sample=True, keeps_scores=True).scores(prefix_ids, logits)
    assert torch.equal(kept.values, expected)


def test_the_shortlist_is_short() -> None:
    """Every stack gives a shortlist of fewer than 150 tokens."""
    logits = torch.randn(1, 3, 1000)
    for name, processors in STACKS.items():
        scores = TokenChoice(LogitsProcessorList(processors), do_sample=True).scores(torch.zeros(1, 1).long(), logits)
        assert scores.values.shape[-1] < 150, name


class Prefer(lp.LogitsProcessor):
    """A user's processor that depends on the prefix."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_add(1, input_ids[0], torch.full((len(scores), input_ids.shape[1]), 3.0))


class MyTopK(lp.TopKLogitsWarper):
    """A subclass may do anything."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return super().__call__(input_ids, scores).masked_fill(torch.arange(scores.shape[1]) == 17, 9.0)


@pytest.mark.parametrize(
    ("processors", "is_rowwise"),
    [
        ([Prefer(), lp.TemperatureLogitsWarper(0.8), lp.TopKLogitsWarper(9)], False),
        ([lp.TemperatureLogitsWarper(0.8), MyTopK(9), lp.TopPLogitsWarper(0.9)], False),
        ([lp.TopKLogitsWarper(9), Prefer()], False),
        ([lp.TopKLogitsWarper(9), lp.SuppressTokensLogitsProcessor([3, 5])], True),
        ([lp.TopHLogitsWarper(0.5), lp.TopKLogitsWarper(9)], True),
        ([lp.TopKLogitsWarper(9), lp.TopHLogitsWarper(0.5)], True),
    ],
)
def test_others_see_the_whole_vocabulary(processors: list[Any], is_rowwise: bool) -> None:
    """Processors that know tokens by id see the whole vocabulary; only those known to be rowwise count as such."""
    torch.manual_seed(0)
    logits, prefix_ids = torch.randn(1, 1, 1000), torch.tensor([[4, 17, 30]])
    choice = TokenChoice(LogitsProcessorList(processors), do_sample=True)
    assert choice.is_rowwise is is_rowwise
    expected = LogitsProcessorList(processors)(prefix_ids, logits[:, 0].clone())
    actual = spread(choice.scores(prefix_ids, logits), 1000)[:, 0]
    assert torch.equal(actual, expected)
