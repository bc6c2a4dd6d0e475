"""Which draft tokens the target keeps: pure functions of tensors, no model and no cache."""

from typing import NamedTuple

import torch


class Verification(NamedTuple):
    """The target's own tokens after the prefix and after each draft token, and how many draft tokens they confirm."""

    token_ids: torch.Tensor  # (1, k + 1)
    num_accepted: torch.Tensor  # (1,), 0..k


def choose_greedy(scores: torch.Tensor) -> torch.Tensor:
    """The target's tokens (1, m) for scores (1, m, vocabulary); ties break as in plain `generate`."""
    return scores.argmax(dim=-1)


def choose_sampled(scores: torch.Tensor) -> torch.Tensor:
    """Independent samples (1, m) from softmax(scores), scores (1, m, vocabulary), with torch's global generator."""
    return torch.multinomial(scores[0].softmax(dim=-1), num_samples=1).T


def verify(draft_ids: torch.Tensor, token_ids: torch.Tensor) -> Verification:
    """Longest prefix of the draft (1, k) that equals the target's own tokens (1, k + 1).

    The emitted tokens are `token_ids[:, : num_accepted + 1]`: accepted draft tokens, then the bonus token. Each of
    them is the target's own choice after a prefix of such choices. So with `choose_greedy` the text is plain greedy
    decoding's, and with `choose_sampled` it is distributed as plain sampling's, whatever was drafted, as long as the
    draft does not depend on the samples (sample-and-match; the acceptance rate is the target's probability of the
    drafted token, that of rejection sampling (arXiv 2211.17192) for a one-hot q, which a diffusion draft is).
    """
    matches = (token_ids[:, :-1] == draft_ids).long()
    return Verification(token_ids, matches.cumprod(dim=-1).sum(dim=-1))
