"""Which draft tokens the target keeps: pure functions of tensors, no model and no cache."""

from typing import NamedTuple

import torch


class Verification(NamedTuple):
    """The target's own tokens after the prefix and after each draft token, and how many draft tokens they confirm."""

    token_ids: torch.Tensor  # (1, k + 1)
    num_accepted: torch.Tensor  # (1,), 0..k


def verify_greedy(draft_ids: torch.Tensor, scores: torch.Tensor) -> Verification:
    """Longest prefix of the draft (1, k) that equals the argmax of the target's scores (1, k + 1, vocabulary).

    The emitted tokens are `token_ids[:, : num_accepted + 1]`: accepted draft tokens, then the bonus token.
    `argmax` is the one plain `generate` applies, so ties break the same way.
    """
    token_ids = scores.argmax(dim=-1)
    matches = (token_ids[:, :-1] == draft_ids).long()
    return Verification(token_ids, matches.cumprod(dim=-1).sum(dim=-1))
