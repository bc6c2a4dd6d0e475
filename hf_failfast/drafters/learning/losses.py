"""How far a drafter is from the target: pure functions of tensors, in nats or accepted tokens."""

import torch


def divergence(logits: torch.Tensor, values: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """KL(target || drafter) [...] over the target's most likely tokens, its probabilities renormalised on them.

    logits: [..., V], the drafter's. values, entries: [..., n], the target's logits and the entries of V that they are
    of; -1 for a token that the drafter does not have, which does not count. 0 where it has none of them.
    """
    is_known = entries >= 0
    wanted = values.float().masked_fill(~is_known, torch.finfo(torch.float32).min).log_softmax(dim=-1)
    found = logits.float().log_softmax(dim=-1).gather(-1, entries.clamp(min=0))
    return (wanted.exp() * (wanted - found)).masked_fill(~is_known, 0).sum(dim=-1)


def matches(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[n, K] bool: the most likely entry of logits [n, K, V] is the label [n, K]."""
    return logits.argmax(dim=-1) == labels


def accepted_lengths(is_match: torch.Tensor) -> torch.Tensor:
    """[n]: how many of the K draft tokens are accepted, given which are right."""
    return is_match.long().cumprod(dim=-1).sum(dim=-1)


def draft_weights(is_match: torch.Tensor, decay: float, first_error: float) -> torch.Tensor:
    """[n, K]: exp(-(k - 1) / decay) for draft position k, since a draft ends at its first wrong token, and
    `first_error` more at that token (arXiv 2606.11552)."""
    count = is_match.shape[-1]
    positions = torch.arange(count, device=is_match.device)
    is_first_error = positions == accepted_lengths(is_match)[..., None]
    return torch.exp(-positions / decay) + first_error * is_first_error
