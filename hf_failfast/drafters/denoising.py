"""How masked positions become tokens: what a pass chooses, and which of its choices stay."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..engine.kernels import most_likely


@dataclass(frozen=True)
class Denoising:
    """How many passes fill the masks of a chunk. One pass per chunk is FailFast's way, and the default.

    steps: T >= 1 passes over a chunk, each fixing an equal share of it, the most confident positions first
        (LLaDA, arXiv 2502.09992; SpecDiff, arXiv 2408.05636, drafts with T steps of MDLM).
    threshold: instead, as many passes as it takes; each fixes the positions with a confidence above the threshold and
        always the most confident one (Fast-dLLM, arXiv 2505.22618).
    """

    steps: int = 1
    threshold: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"`denoising_steps` must be an integer >= 1, but is {self.steps!r}.")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"`denoising_threshold` must be a number in [0, 1], but is {self.threshold!r}.")
        if self.threshold is not None and self.steps != 1:
            raise ValueError("Pass either `denoising_steps` or `denoising_threshold`, not both.")

    @property
    def is_single_pass(self) -> bool:
        return self.steps == 1 and self.threshold is None

    def choose(self, confidence: torch.Tensor, masked: torch.Tensor, step: int, in_order: bool) -> torch.Tensor:
        """Which of the still masked positions (B, n) pass number `step` (from 0) fixes, as bools (B, n).

        in_order: the first positions instead of the most confident ones. Drawn tokens require this: a token drawn
            given a later one has no q that rejection sampling could use.
        """
        positions = torch.arange(masked.shape[1], device=masked.device)
        rank = -positions.expand_as(confidence).float() if in_order else confidence
        count = masked.sum(dim=1, keepdim=True) / max(self.steps - step, 1) if self.threshold is None else 1
        order = rank.masked_fill(~masked, -torch.inf).argsort(dim=1, descending=True, stable=True)
        fixed = order.argsort(dim=1) < count
        if self.threshold is not None:
            fixed |= confidence > self.threshold
            if in_order:
                fixed = (fixed | ~masked).cumprod(dim=1).bool()
        return masked & fixed


class Alternatives(NamedTuple):
    """Other tokens that a drafter proposes at its positions, in the order in which they are tried.

    probs does not depend on the tokens where these are drawn: then it holds the next probabilities of q in descending
    order. It is 0 where there is no further token.
    """

    token_ids: torch.Tensor  # (B, r, m), different from the draft's own token and from each other
    probs: torch.Tensor  # (B, r, m), fp32

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Alternatives":
        """The same change of both."""
        return Alternatives(change(self.token_ids), change(self.probs))


class DraftTokens(NamedTuple):
    """What a pass of the drafter chooses at r positions."""

    token_ids: torch.Tensor  # (B, r)
    confidence: torch.Tensor  # (B, r), fp32, independent of the token drawn
    probs: torch.Tensor | None = None  # (B, r, V), fp32: the distribution that the tokens were drawn from, if any
    alternatives: Alternatives | None = None

    def where(self, condition: torch.Tensor, other: "DraftTokens") -> "DraftTokens":
        """These tokens where `condition` (B, r) holds, those of `other` elsewhere."""
        probs, alternatives = self.probs, self.alternatives
        if probs is not None and other.probs is not None:
            probs = torch.where(condition[..., None], probs, other.probs)
        if alternatives is not None and other.alternatives is not None:
            pairs = zip(alternatives, other.alternatives, strict=True)
            alternatives = Alternatives(*(torch.where(condition[..., None], *pair) for pair in pairs))
        return DraftTokens(
            torch.where(condition, self.token_ids, other.token_ids),
            torch.where(condition, self.confidence, other.confidence),
            probs,
            alternatives,
        )


# From logits (B, r, V) to the scores (B, r, n) that tokens are drawn by, and the ids (B, r, n) they belong to.
Warp = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class MostLikely:
    """The head of a pass whose tokens are not drawn: see `kernels.most_likely`.

    num_alternatives: the next most likely tokens at each position that are returned, too.
    """

    vocab_size: int
    mask_token_id: int | None
    num_alternatives: int = 0

    def __call__(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Ids and confidences (B, r); then those of the alternatives (B, r, m)."""
        best = most_likely(logits, self.vocab_size, self.mask_token_id)
        if not self.num_alternatives:
            return best
        return *best, *_next_likely(logits, best[0], self.vocab_size, self.mask_token_id, self.num_alternatives)


def _next_likely(
    logits: torch.Tensor, best: torch.Tensor, vocab_size: int, mask_token_id: int | None, count: int
) -> Alternatives:
    """The most likely admissible tokens besides the best ones (B, r), and their probabilities under the whole
    distribution."""
    values = logits.float()
    total = values.logsumexp(dim=-1, keepdim=True)
    values = values[..., :vocab_size].scatter(-1, best[..., None], -torch.inf)
    if mask_token_id is not None and mask_token_id < vocab_size:
        values[..., mask_token_id] = -torch.inf
    top, token_ids = values.topk(min(count, values.shape[-1]))
    return Alternatives(token_ids, (top - total).exp())


def choose_tokens(
    logits: torch.Tensor,
    vocab_size: int,
    mask_token_id: int | None,
    warp: Warp | None = None,
    num_alternatives: int = 0,
) -> DraftTokens:
    """The most likely admissible tokens, or tokens drawn from the warped distribution, from logits (B, r, V); the
    alternatives are the next likely ones, or are drawn after them without replacement.

    The mask token and ids the target does not know (>= vocab_size) are not admissible. The confidence is the
    probability of the most likely admissible token under the drafter's whole distribution, where inadmissible mass
    counts as doubt. It depends neither on the token drawn nor on the warp. `probs` are over the `vocab_size` ids.
    """
    if warp is None:
        token_ids, confidence, *others = MostLikely(vocab_size, mask_token_id, num_alternatives)(logits)
        return DraftTokens(token_ids, confidence, alternatives=Alternatives(*others) if others else None)
    token_ids, confidence = most_likely(logits, vocab_size, mask_token_id)
    logits = logits[..., :vocab_size].to(torch.float32, copy=True)
    if mask_token_id is not None and mask_token_id < logits.shape[-1]:
        logits[..., mask_token_id] = -torch.inf
    values, candidates = warp(logits)
    probs = values.softmax(dim=-1)
    # A broken drafter's distributions become one-hot ones, which are verified like any other.
    certain = torch.zeros_like(probs).index_fill(-1, torch.zeros(1, dtype=torch.long, device=probs.device), 1.0)
    probs = torch.where(probs.isfinite().all(dim=-1, keepdim=True), probs, certain)
    drawn = torch.multinomial(probs.flatten(0, 1), num_samples=1).view(*token_ids.shape, 1)
    whole = probs.new_zeros(*token_ids.shape, vocab_size).scatter(-1, candidates, probs)
    alternatives = _drawn_after(drawn, probs, candidates, num_alternatives) if num_alternatives else None
    return DraftTokens(candidates.gather(-1, drawn)[..., 0], confidence, whole, alternatives)


def _drawn_after(drawn: torch.Tensor, probs: torch.Tensor, candidates: torch.Tensor, count: int) -> Alternatives:
    """Further draws from `probs` (B, r, n) of the candidates' ids, without replacement, after the entries drawn
    (B, r, 1): the Gumbel-max trick (arXiv 1903.06059)."""
    count = min(count, probs.shape[-1] - 1)
    noise = -torch.empty_like(probs).exponential_().log()
    entries = (probs.log() + noise).scatter(-1, drawn, -torch.inf).topk(count).indices
    return Alternatives(candidates.gather(-1, entries), probs.topk(count + 1).values[..., 1:])


def choose_in_turn(
    step: Callable[[int, torch.Tensor], torch.Tensor],
    length: int,
    previous: torch.Tensor,
    vocab_size: int,
    mask_token_id: int | None,
    warp: Warp | None = None,
    confidence: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
) -> DraftTokens:
    """`length` tokens of each sequence, chosen by `choose_tokens` from logits that depend on the token before.

    step: from a position and the tokens (B,) before it to the logits (B, V).
    previous: the tokens (B,) before the first.
    confidence: from the same arguments to confidences (B,), in place of those of `choose_tokens`. Both depend on
        earlier tokens only, as those of chunks do.
    """
    chosen = []
    for position in range(length):
        tokens = choose_tokens(step(position, previous)[:, None], vocab_size, mask_token_id, warp)
        if confidence is not None:
            tokens = tokens._replace(confidence=confidence(position, previous)[:, None])
        previous = tokens.token_ids[:, 0]
        chosen.append(tokens)
    probs = [tokens.probs for tokens in chosen if tokens.probs is not None]
    return DraftTokens(
        torch.cat([tokens.token_ids for tokens in chosen], dim=1),
        torch.cat([tokens.confidence for tokens in chosen], dim=1),
        torch.cat(probs, dim=1) if probs else None,
    )
