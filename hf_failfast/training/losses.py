"""Losses of the canvas drafter: pure functions of tensors."""

import torch
from torch.nn.functional import cross_entropy, smooth_l1_loss

IGNORE = -100  # a label that is outside of the answer or of the draft vocabulary


def position_weights(canvas_length: int, decay: float) -> torch.Tensor:
    """[K], exp(-(k - 1) / decay) for draft position k = 1 .. K.

    A draft ends at its first wrong token, so early positions count more.
    """
    return torch.exp(-torch.arange(canvas_length) / decay)


def weighted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over the rows weighted by `weights` [n] of logits [n, V] against labels [n]; IGNORE rows do not count."""
    losses = cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
    weights = weights * (labels != IGNORE)
    return (losses * weights).sum() / weights.sum().clamp_min(1e-6)


def weighted_regression(output: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Smooth-L1 of output against wanted, both [n, hidden]: mean over hidden, then weighted by `weights` [n]."""
    losses = smooth_l1_loss(output.float(), wanted.float(), reduction="none").mean(dim=-1)
    return (losses * weights).sum() / weights.sum().clamp_min(1e-6)


def leading_matches(drafted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[..., K] -> [...], the accepted draft tokens under greedy verification: matches before the first miss."""
    return (drafted == labels).long().cumprod(dim=-1).sum(dim=-1)
