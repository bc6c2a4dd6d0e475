"""Samples of SmolLM2-135M-Instruct with the bundled drafter, compared with plain `generate`'s."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sampling_support import chi_square, processors_of
from scipy import stats

import hf_failfast
from hf_failfast.decoding.verification import NAMED, Scores, choose_by_rejection
from hf_failfast.pairs import load_smollm2

PROMPT = "My favourite animal is"  # short, since every sample reads it
SAMPLES = 160
WARPING = {"temperature": 1.2, "top_k": 40, "top_p": 0.95}
VERIFIERS: dict[str, dict[str, Any]] = {
    "sample_and_match": {},
    "rejection": {"verifier": "rejection"},
    "rejection of hotter drafts": {"verifier": "rejection", "draft_temperature": 2.0},
}


class Pair(NamedTuple):
    target: Any
    drafter: Any
    ids: torch.Tensor


@pytest.fixture(scope="module")
def pair() -> Pair:
    target, tokenizer = load_smollm2(torch.float32)
    drafter = hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER, dtype=torch.float32)
    return Pair(target, drafter, tokenizer(PROMPT, return_tensors="pt").input_ids)


def first_tokens(target: Any, ids: torch.Tensor, **options: Any) -> np.ndarray:
    """The first two new tokens of the samples, (SAMPLES, 2)."""
    rows = target.generate(
        ids, do_sample=True, max_new_tokens=2, num_return_sequences=SAMPLES, pad_token_id=0, **WARPING, **options
    )
    return rows[:, ids.shape[1] :].numpy()


def two_sample(first: np.ndarray, second: np.ndarray) -> float:
    """p value that the first tokens of both samples come from one distribution; rare tokens are pooled."""
    tokens, index = np.unique(np.concatenate([first[:, 0], second[:, 0]]), return_inverse=True)
    table = np.zeros((2, len(tokens)))
    np.add.at(table, (np.repeat([0, 1], [len(first), len(second)]), index), 1)
    is_common = table.sum(axis=0) >= 10
    pooled = np.column_stack([table[:, is_common], table[:, ~is_common].sum(axis=1)])
    assert pooled.shape[1] >= 3, "too few common tokens to compare"
    return float(stats.chi2_contingency(pooled[:, pooled.sum(axis=0) > 0]).pvalue)


@pytest.fixture(scope="module")
def plain(pair: Pair) -> np.ndarray:
    torch.manual_seed(0)
    return first_tokens(pair.target, pair.ids)


def drafted(pair: Pair, **options: Any) -> np.ndarray:
    torch.manual_seed(1)
    return first_tokens(pair.target, pair.ids, assistant_model=pair.drafter, custom_generate="hf_failfast", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "verifier",
    [
        "sample_and_match",
        "rejection",
        pytest.param("rejection of hotter drafts", marks=pytest.mark.exhaustive),
    ],
)
def test_first_tokens_are_those_of_plain_sampling(pair: Pair, plain: np.ndarray, verifier: str) -> None:
    """First tokens of a real pair fit plain `generate`'s samples and the target's distribution."""
    ours = drafted(pair, **VERIFIERS[verifier])
    assert two_sample(plain, ours) > 1e-3
    with torch.no_grad():
        logits = pair.target(pair.ids).logits[:, -1]
    probability = processors_of(pair.target, pair.ids, **WARPING)(pair.ids, logits)[0].softmax(dim=-1)
    assert chi_square(torch.bincount(torch.tensor(ours[:, 0]), minlength=len(probability)), probability) > 1e-3


@pytest.mark.slow
def test_the_two_sample_test_rejects_a_mutant(pair: Pair, plain: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two-sample test rejects a verifier that accepts every token of a drafter that is far too hot."""

    def accept_all(scores: Scores, draft_ids: torch.Tensor, draft_probs: torch.Tensor | None) -> torch.Tensor:
        chosen = choose_by_rejection(scores, draft_ids, draft_probs)
        return torch.cat([draft_ids, chosen[:, draft_ids.shape[1] :]], dim=1)

    monkeypatch.setitem(NAMED, "rejection", accept_all)
    assert two_sample(plain, drafted(pair, verifier="rejection", draft_temperature=5.0)) < 1e-6
