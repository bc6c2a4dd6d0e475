"""Losses of a drafter: pure functions of tensors, in nats or accepted tokens.

A canvas has K draft positions k = 1 .. K. `labels` [n, K] are the target's tokens; IGNORE is outside of the answer or
of the draft vocabulary.
"""

import torch
from torch.nn.functional import cross_entropy, smooth_l1_loss

from ..drafters.learning.losses import divergence

IGNORE = -100


def position_weights(canvas_length: int, decay: float) -> torch.Tensor:
    """[K], exp(-(k - 1) / decay) for draft position k (arXiv 2606.11552); all ones where decay is 0.

    A draft ends at its first wrong token, so early positions count more.
    """
    if decay == 0:
        return torch.ones(canvas_length)
    return torch.exp(-torch.arange(canvas_length) / decay)


def reach_weights(
    losses: torch.Tensor, labels: torch.Tensor, alpha: float, known: torch.Tensor | None = None
) -> torch.Tensor:
    """[n, K], for draft position k the expected number of accepted tokens from k on, from the cross-entropies [n, K]
    of a draft (D-PACE, arXiv 2605.18810): the sum over m >= k of the product over i <= m of q_i.

    q_i is the probability of the right token, moved by `alpha` towards 1, so that late positions count from the start;
    0 where there is no label, and 1 where the token is `known` [n, K]. A constant: no gradient passes.
    """
    right = ((1 - alpha) * torch.exp(-losses.detach()) + alpha) * (labels != IGNORE)
    if known is not None:
        right = right.masked_fill(known, 1.0)
    reached = right.cumprod(dim=-1)
    return reached.flip(-1).cumsum(dim=-1).flip(-1)


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[...] cross-entropies of logits [..., V] against labels [...]; 0 at IGNORE."""
    losses = cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.unflatten(0, labels.shape)


def weighted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over rows weighted by `weights` [...] of logits [..., V] against labels [...]; IGNORE rows do not count."""
    return weighted_mean(token_losses(logits, labels), weights * (labels != IGNORE))


def focal_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy at the first position of each canvas whose argmax misses (arXiv 2606.11552), mean over canvases
    that miss; logits [n, K, V], labels [n, K]. A position without a label ends its canvas."""
    matches = logits.argmax(dim=-1) == labels
    is_first_miss = ~matches & (matches.long().cumprod(dim=-1).sum(dim=-1, keepdim=True) == _positions(labels))
    return weighted_cross_entropy(logits, labels, is_first_miss.float())


def expected_accepted_length(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[n] sum over m of prod over k <= m of p_k(y_k): how many draft tokens are accepted on average if each is drawn
    from the drafter's own distribution; logits [n, K, V], labels y [n, K].

    On the target's greedy tokens its negative is the chain loss (arXiv 2606.11552); on tokens that the target sampled
    it is streak distillation (SpecDiff-2, arXiv 2511.00606).
    """
    log_probabilities = -token_losses(logits, labels)
    log_probabilities = log_probabilities.masked_fill(labels == IGNORE, -torch.inf)
    return log_probabilities.cumsum(dim=-1).exp().sum(dim=-1)


def soft_label_divergence(
    logits: torch.Tensor, target_logits: torch.Tensor, weights: torch.Tensor, top: int
) -> torch.Tensor:
    """KL(target || drafter) over the target's `top` most likely tokens, its probabilities renormalised on them.

    logits and target_logits [..., V]; mean over rows weighted by `weights` [...].
    """
    values, ids = target_logits.float().topk(min(top, target_logits.shape[-1]), dim=-1)
    return weighted_mean(divergence(logits, values, ids), weights)


def weighted_regression(output: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Smooth-L1 of output against wanted, both [..., hidden]: mean over hidden, then weighted by `weights` [...]."""
    losses = smooth_l1_loss(output.float(), wanted.float(), reduction="none").mean(dim=-1)
    return weighted_mean(losses, weights)


def weighted_mean(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """A scalar; 0 where all weights are."""
    return (losses * weights).sum() / weights.sum().clamp_min(1e-6)


def _positions(labels: torch.Tensor) -> torch.Tensor:
    return torch.arange(labels.shape[-1], device=labels.device)
