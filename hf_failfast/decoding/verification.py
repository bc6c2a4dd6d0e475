"""Which token the target writes: pure functions of tensors, no model and no cache.

After every draft token the target picks its own next token, and the longest prefix on which draft and choices agree
is kept (`kernels.accept`). Only the choice differs: the most likely token (`choose_greedy`), a sample
(`choose_sampled`), or a sample that agrees with the draft token as often as a sample can (`choose_by_rejection`).

`choose_sampled` (sample-and-match) requires that the draft does not depend on the samples. Its acceptance rate is the
target's probability of the drafted token, as in rejection sampling with a one-hot q (that of a draft of most likely
tokens). `choose_by_rejection` requires that each draft token was drawn from the q it comes with, given only the tokens
before it: neither q nor the decision to draft there may depend on the token or on later ones (see `LengthPolicy`).
"""

from typing import NamedTuple

import torch
from torch.nn.functional import pad


class Scores(NamedTuple):
    """Processed scores of the tokens that can be chosen; all others have probability 0."""

    values: torch.Tensor  # (B, m, n), fp32
    token_ids: torch.Tensor  # (B, m, n), the token that each entry stands for


class Branches(NamedTuple):
    """The tokens drafted at each of m positions, c at most, in the order in which they are tried."""

    token_ids: torch.Tensor  # (B, m, c); -1: none
    probs: torch.Tensor  # (B, m, V), what tokens were drawn from, one after the other without replacement
    is_drawn: torch.Tensor  # (B, m, c); False: the token was not drawn, but given by those before it


def choose_greedy(scores: Scores) -> torch.Tensor:
    """The target's tokens (B, m); of equal scores the first entry's, as in plain `generate`."""
    return _token(scores, scores.values.argmax(dim=-1))


def choose_sampled(
    scores: Scores, draft_ids: torch.Tensor | None = None, draft_probs: torch.Tensor | None = None
) -> torch.Tensor:
    """Independent samples (B, m) from softmax(scores), with torch's global generator; the draft plays no part."""
    return _token(scores, _sample(scores.values.softmax(dim=-1)))


def choose_by_rejection(scores: Scores, draft_ids: torch.Tensor, draft_probs: torch.Tensor | None) -> torch.Tensor:
    """Samples (B, m) from softmax(scores), each tied to the token drafted at its position.

    Speculative sampling (arXiv 2211.17192, algorithm 1): with p the target's and q the drafter's distribution, the
    draft token x is chosen with probability min(1, p(x) / q(x)), else a token from the residual max(p - q, 0),
    normalised. The choice is then distributed as p, and equal to x with probability sum(min(p, q)), the most there is.

    draft_ids: (B, k), k <= m, each drawn from its q.
    draft_probs: (B, k, V), the q of every position. Where it is all zeros, and at positions k to m, nothing was
        drafted: the choice is a sample from p. None: the draft was not drawn, as with a one-hot q: samples from p.
    """
    if draft_probs is None:
        return choose_sampled(scores)
    missing = scores.values.shape[1] - draft_ids.shape[1]
    draft_ids, draft_probs = pad(draft_ids, (0, missing)), pad(draft_probs, (0, 0, 0, missing))
    p = scores.values.softmax(dim=-1)
    q = draft_probs.gather(-1, scores.token_ids)
    p_drafted = torch.where(scores.token_ids == draft_ids[..., None], p, 0).sum(dim=-1)
    q_drafted = draft_probs.gather(-1, draft_ids[..., None])[..., 0]
    is_accepted = (torch.rand_like(q_drafted) * q_drafted < p_drafted) & (q_drafted > 0)
    residual = (p - q).clamp(min=0)
    # Where rounding leaves nothing, p equals q.
    residual = torch.where(residual.sum(dim=-1, keepdim=True) > 0, residual, p)
    return torch.where(is_accepted, draft_ids, _token(scores, _sample(residual)))


def choose_among(scores: Scores, drafted: Branches) -> torch.Tensor:
    """Samples (B, m) from softmax(scores), each tied to the tokens drafted at its position.

    `choose_by_rejection` once per token, on what the tokens before have left: SpecInfer's multi-round sampling (arXiv
    2305.09781, algorithm 3), for draws without replacement (arXiv 2402.14160). After a rejection the residual takes
    the place of p, and q loses the rejected token. A token that was not drawn has a one-hot q of its own.
    """
    p, q = scores.values.softmax(dim=-1), drafted.probs
    chosen = torch.full(p.shape[:2], -1, device=p.device)
    for token_ids, is_drawn in zip(drafted.token_ids.unbind(-1), drafted.is_drawn.unbind(-1), strict=True):
        here = token_ids.clamp(min=0)[..., None]
        q = (q / q.sum(dim=-1, keepdim=True)).nan_to_num()
        own = torch.where(is_drawn[..., None], q, torch.zeros_like(q).scatter(-1, here, 1.0))
        q_drafted = own.gather(-1, here)[..., 0]
        p_drafted = torch.where(scores.token_ids == here, p, 0).sum(dim=-1)
        is_tried = (token_ids >= 0) & (q_drafted > 0)
        is_accepted = is_tried & (torch.rand_like(q_drafted) * q_drafted < p_drafted)
        chosen = torch.where(is_accepted & (chosen < 0), token_ids, chosen)
        residual = (p - own.gather(-1, scores.token_ids)).clamp(min=0)
        total = residual.sum(dim=-1, keepdim=True)
        p = torch.where(is_tried[..., None] & (total > 0), residual / total, p)
        q = torch.where(is_tried[..., None], q.scatter(-1, here, 0.0), q)
    return torch.where(chosen < 0, _token(scores, _sample(p)), chosen)


def _sample(weights: torch.Tensor) -> torch.Tensor:
    """Entries (B, m) drawn in proportion to the weights (B, m, n)."""
    return torch.multinomial(weights.flatten(0, 1), num_samples=1).view(weights.shape[:2])


def _token(scores: Scores, entries: torch.Tensor) -> torch.Tensor:
    return scores.token_ids.gather(-1, entries[..., None])[..., 0]


# The verifiers that `FailFastConfig` may name.
NAMED = {"sample_and_match": choose_sampled, "rejection": choose_by_rejection}
