"""Sampling follows the target's distribution: tests of fit show it, and the same tests reject mutants."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from sampling_support import (
    HOTTER,
    LENGTH,
    SIZE,
    VERIFIERS,
    Pair,
    chi_square,
    draw,
    enumerate_distribution,
    kolmogorov_smirnov,
    sample,
    small_pair,
)
from torch.nn.functional import one_hot, pad
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from hf_failfast.decoding import token_choice as scoring
from hf_failfast.decoding import verification
from hf_failfast.decoding.token_choice import TokenChoice
from hf_failfast.decoding.verification import Scores, choose_sampled
from hf_failfast.drafters import DiffusionDrafter
from hf_failfast.drafters.chunks import ChunkedSession
from hf_failfast.drafters.denoising import Denoising
from hf_failfast.drafters.masked.session import DraftingOptions, MaskedDrafter

TEMPERATURE = {"temperature": 1.3, "top_k": 0}
STACKS: dict[str, dict[str, Any]] = {
    "temperature": TEMPERATURE,
    "top-k and top-p": {"temperature": 0.8, "top_k": 5, "top_p": 0.9},
    "min-p": {"min_p": 0.05, "top_k": 0},
    "typical": {"typical_p": 0.8, "top_k": 0},
    "penalty and n-grams": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "top_k": 6},  # walked
}
CELLS = list(itertools.product(STACKS, VERIFIERS))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return small_pair(str(tmp_path_factory.mktemp("drafter")))


def fit(pair: Pair, drafter: DiffusionDrafter, warping: dict[str, Any], samples: int = 1500, **options: Any) -> float:
    """p value of the enumerated distribution given the samples."""
    return chi_square(draw(pair, drafter, samples, **warping, **options), enumerate_distribution(pair, **warping))


# The fit


@pytest.mark.parametrize(("name", "verifier"), CELLS)
def test_samples_follow_the_targets_distribution(pair: Pair, name: str, verifier: str) -> None:
    """Samples fit the enumerated distribution of the target and its processors."""
    assert fit(pair, pair.drafter(), STACKS[name], **VERIFIERS[verifier]) > 1e-3


@pytest.mark.parametrize("options", [{"denoising_steps": 2}, {"denoising_threshold": 0.5}])
def test_drafts_of_several_denoising_steps(pair: Pair, options: dict[str, Any]) -> None:
    """Drafts of several denoising steps leave the distribution unchanged."""
    assert fit(pair, pair.drafter(**options), TEMPERATURE, chunk_length=3, **HOTTER) > 1e-3


@pytest.mark.parametrize("kind", ["coupled", "reduced"])
def test_unusual_drafters(pair: Pair, kind: str) -> None:
    """Samples fit with a q over a reduced vocabulary, and with one that depends on later tokens."""
    drafter = coupled(pair) if kind == "coupled" else reduced(pair)
    assert fit(pair, drafter, TEMPERATURE, verifier="rejection", draft_temperature=1.0) > 1e-3


@pytest.mark.parametrize(("name", "verifier"), CELLS)
def test_long_texts_follow_the_targets_distribution(name: str, verifier: str, tmp_path: Any) -> None:
    """A text of 400 tokens over 60 ids, with drafts of many lengths, follows the distribution."""
    pair = small_pair(str(tmp_path), vocab_size=60)
    warping = STACKS[name] | ({"top_k": 30} if STACKS[name].get("top_k") else {})
    torch.manual_seed(1)
    prompt = torch.randint(59, (1, 12))
    output = sample(
        pair,
        pair.drafter(),
        prompt,
        max_new_tokens=400,
        chunk_length=3,
        max_draft_length=6,
        return_dict_in_generate=True,
        **warping,
        **VERIFIERS[verifier],
    )
    assert 0.02 < output.speculation.acceptance_rate < 0.98
    assert kolmogorov_smirnov(pair.target, output.sequences, 12, **warping) > 1e-3


def test_rejection_accepts_more_than_matching_where_drafts_are_unsure(pair: Pair) -> None:
    """Rejection accepts sum(min(p, q)) of unsure drafts, more than the sum(p q) of matching."""

    def rate(**options: Any) -> float:
        torch.manual_seed(0)
        output = sample(
            pair, pair.drafter(), max_new_tokens=400, return_dict_in_generate=True, **TEMPERATURE, **options
        )
        return output.speculation.acceptance_rate

    matching = rate(max_draft_length=1)
    assert rate(max_draft_length=1, verifier="rejection") > matching + 0.2  # one shifted token: q is almost p


# Mutants: mistakes that real implementations have made


def wrong_q(scores: Scores, draft_ids: torch.Tensor, draft_probs: torch.Tensor) -> torch.Tensor:
    """Drafts drawn at one temperature and verified with the q of another."""
    sharper = draft_probs**2
    return choose_by_rejection(scores, draft_ids, sharper / sharper.sum(dim=-1, keepdim=True))


def missing_residual(scores: Scores, draft_ids: torch.Tensor, draft_probs: torch.Tensor) -> torch.Tensor:
    """A rejected token is replaced by a sample from p."""
    chosen = choose_by_rejection(scores, draft_ids, draft_probs)
    is_accepted = chosen[:, : draft_ids.shape[1]] == draft_ids
    is_accepted = pad(is_accepted, (0, chosen.shape[1] - draft_ids.shape[1]))
    return torch.where(is_accepted, chosen, choose_sampled(scores))


def ensemble(scores: Scores, draft_ids: torch.Tensor, draft_probs: torch.Tensor) -> torch.Tensor:
    """Verification against 0.7 p + 0.3 q (transformers' `assistant_ensemble_weight`)."""
    p = scores.values.softmax(dim=-1)
    q = pad(draft_probs, (0, 0, 0, p.shape[1] - draft_probs.shape[1]))
    mixed = torch.where(q.sum(dim=-1, keepdim=True) > 0, 0.7 * p + 0.3 * q, p)
    return choose_by_rejection(Scores(mixed.log(), scores.token_ids), draft_ids, draft_probs)


choose_by_rejection = verification.choose_by_rejection


@pytest.mark.parametrize("mutant", [wrong_q, missing_residual, ensemble])
def test_the_proof_rejects_mutants_of_rejection(pair: Pair, monkeypatch: pytest.MonkeyPatch, mutant: Any) -> None:
    def verifier(scores: Scores, draft_ids: torch.Tensor, draft_probs: torch.Tensor | None) -> torch.Tensor:
        return choose_sampled(scores) if draft_probs is None else mutant(scores, draft_ids, draft_probs)

    monkeypatch.setitem(verification.NAMED, "rejection", verifier)
    assert fit(pair, pair.drafter(), TEMPERATURE, **HOTTER) < 1e-6


def test_the_proof_rejects_a_policy_that_peeks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects drafts cut before their first unlikely token: the rest is no sample from q."""
    original = ChunkedSession.draft

    def peek(*arguments: Any) -> Any:
        draft = original(*arguments)
        if draft.probs is None:
            return draft
        own = draft.probs.gather(-1, draft.token_ids[..., None])[..., 0]
        likely = (own >= 0.3).long().cumprod(dim=1).sum(dim=1).tolist()
        lengths = [min(pair) for pair in zip(likely, draft.lengths, strict=True)]
        is_kept = torch.arange(len(draft)) < torch.tensor(lengths)[:, None]
        return dataclasses.replace(draft, lengths=lengths, probs=draft.probs * is_kept[..., None])

    monkeypatch.setattr(ChunkedSession, "draft", peek)
    assert fit(pair, pair.drafter(), TEMPERATURE, **HOTTER) < 1e-6


def test_the_proof_rejects_tokens_drawn_given_later_ones(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects drawn tokens fixed in order of confidence (SpecDiff): they were not drawn from their q."""
    choose = Denoising.choose
    monkeypatch.setattr(Denoising, "choose", lambda self, *args, in_order: choose(self, *args, in_order=False))
    assert fit(pair, coupled(pair), TEMPERATURE, 2000, verifier="rejection", draft_temperature=1.0) < 1e-6


def accepts_the_draft_too_often(draft_ids: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Keeps half of the rejected first draft tokens."""
    if draft_ids.shape[1]:
        kept = torch.where(torch.rand(len(draft_ids), 1) < 0.5, draft_ids[:, :1], token_ids[:, :1])
        token_ids = torch.cat([kept, token_ids[:, 1:]], dim=1)
    return token_ids


def never_repeats_the_rejected_token(draft_ids: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Emits the token of the next row after a rejection, as if the draft had been accepted."""
    is_confirmed = (token_ids[:, :-1] == draft_ids).cumprod(dim=1).bool()
    after = torch.cat([token_ids[:, 1:], token_ids[:, -1:]], dim=1)
    return torch.where(pad(is_confirmed, (0, 1)), token_ids, after)


@pytest.mark.parametrize("mutant", [accepts_the_draft_too_often, never_repeats_the_rejected_token])
def test_the_proof_rejects_mutants_of_matching(pair: Pair, monkeypatch: pytest.MonkeyPatch, mutant: Any) -> None:
    choose = TokenChoice.choose
    monkeypatch.setattr(
        TokenChoice, "choose", lambda self, scores, ids, *rest: mutant(ids, choose(self, scores, ids, *rest))
    )
    assert fit(pair, pair.drafter(), TEMPERATURE) < 1e-6


def test_the_proof_rejects_a_second_draw(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects a second draw where the first does not confirm the draft: it favours drafted tokens."""

    def second_draw(self: Any, scores: Scores, draft_ids: torch.Tensor, *_: Any) -> torch.Tensor:
        first, second = choose_sampled(scores), choose_sampled(scores)
        wanted = pad(draft_ids, (0, first.shape[1] - draft_ids.shape[1]), value=-1)
        return torch.where(first == wanted, first, second)

    monkeypatch.setattr(scoring.TokenChoice, "choose", second_draw)
    assert fit(pair, pair.drafter(), TEMPERATURE) < 1e-6


def test_the_long_test_rejects_another_temperature(tmp_path: Any) -> None:
    """The test of long texts rejects samples drawn at another temperature."""
    pair = small_pair(str(tmp_path), vocab_size=60)
    torch.manual_seed(1)
    ids = sample(pair, pair.drafter(), torch.randint(59, (1, 12)), max_new_tokens=600, temperature=0.5, top_k=0)
    assert kolmogorov_smirnov(pair.target, ids, 12, temperature=1.0, top_k=0) < 1e-6


# Drafters of the proof


class Coupled(LlamaForCausalLM):
    """Knows two tokens for the second of two masked positions, and none for the first until it sees the second.

    In order of confidence the second token is drawn first, and decides the first.
    """

    pairs: torch.Tensor  # (2, 2): two likely continuations of two tokens

    def forward(self, input_ids: Any = None, logits_to_keep: Any = 0, **inputs: Any) -> CausalLMOutput:
        super().forward(input_ids=input_ids, **inputs)  # fills the slots
        logits = torch.zeros(*input_ids.shape, SIZE)
        logits[:, -1] = 4.0 * one_hot(self.pairs[:, 1], SIZE).float().sum(dim=0)
        for first, second in self.pairs:
            logits[:, -2] += 5.0 * (input_ids[:, -1:] == second) * one_hot(first, SIZE)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutput(logits=logits[:, kept])


def coupled(pair: Pair) -> DiffusionDrafter:
    drafter = pair.drafter(attention="bidirectional", shift=0)
    assert isinstance(drafter, MaskedDrafter)
    body = Coupled(pair.target.config).eval()
    likely = enumerate_distribution(pair, **TEMPERATURE).sum(dim=2)[: SIZE - 1, : SIZE - 1]  # no mask token
    first = likely.sum(dim=1).topk(2).indices
    second = likely[first[0]].topk(2).indices
    body.pairs = torch.stack([first, second], dim=1)
    return MaskedDrafter(body, drafter.spec, drafter.config, DraftingOptions(Denoising(steps=2)))


def reduced(pair: Pair) -> DiffusionDrafter:
    """Proposes only even ids, in another order than the target's."""
    drafter = pair.drafter()
    assert isinstance(drafter, MaskedDrafter)
    vocabulary = torch.tensor([6, 0, 4, 2])

    class Reduced(LlamaForCausalLM):
        def forward(self, **inputs: Any) -> CausalLMOutput:
            return CausalLMOutput(logits=super().forward(**inputs).logits[..., vocabulary])

    body = Reduced(pair.target.config).eval()
    body.load_state_dict(pair.target.state_dict())
    body.vocabulary = vocabulary
    return MaskedDrafter(body, drafter.spec, drafter.config)


# Seeds and scores


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_a_seed_reproduces_the_samples(pair: Pair, verifier: str) -> None:
    """`torch.manual_seed` makes samples repeatable."""
    first, second = (draw(pair, pair.drafter(), 20, **TEMPERATURE, **VERIFIERS[verifier]) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("walked", [False, True])
def test_scores_are_those_of_plain_sampling(pair: Pair, verifier: str, walked: bool) -> None:
    """Returned scores are the processed logits, -inf outside the top-k."""
    torch.manual_seed(0)
    options = {"temperature": 0.5, "top_k": 3} | ({"repetition_penalty": 1.2} if walked else {})
    output = sample(
        pair,
        pair.drafter(),
        max_new_tokens=12,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **options,
        **VERIFIERS[verifier],
    )
    assert len(output.scores) == len(output.logits) == 12
    for scores, logits in zip(output.scores, output.logits, strict=True):
        kept = scores > -torch.inf
        assert kept.sum() == 3
        if not walked:
            torch.testing.assert_close(scores[kept], (logits / 0.5)[kept])


def test_enumeration_covers_everything(pair: Pair) -> None:
    """Enumerated distributions add up to one and cover every continuation."""
    for warping in STACKS.values():
        assert abs(float(enumerate_distribution(pair, **warping).sum()) - 1) < 1e-5
    assert enumerate_distribution(pair, **TEMPERATURE).shape == (SIZE,) * LENGTH
