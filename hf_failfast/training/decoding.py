"""Greedy decoding with a drafter, simulated exactly: one teacher-forced pass drafts from every position of an answer.

Where each round starts follows from what the one before kept, so the drafts are those of real decoding with one
whole canvas a round, up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..measure.bootstrap import ratio_interval
from .data.shards import Example


@dataclass(frozen=True)
class Decoded:
    """One answer: its tokens, and the draft tokens that were accepted in each round."""

    tokens: int
    accepted: Sequence[int]


def decoded(matches: torch.Tensor, tokens: int, drafts_at_once: bool = True) -> Decoded:
    """Plays the rounds of one answer of `tokens` tokens.

    matches: bool [>= tokens, K], row t what a canvas drafts after t tokens of the answer; False after its end.
    drafts_at_once: whether the first round drafts; a drafter that reads the target's states has none to read there.
    """
    right = matches[:tokens].long().cumprod(dim=1).sum(dim=1).tolist()
    accepted, written = ([], 0) if drafts_at_once else ([0], 1)
    while written < tokens:
        accepted.append(right[written])
        written += right[written] + 1
    return Decoded(tokens, accepted)


def decoding_figures(answers: Sequence[Decoded], canvas_length: int) -> dict[str, Any]:
    """Tokens a round over all answers, the bonus token included, with the limits of its 95 % bootstrap interval over
    answers; and the share of rounds that accepted the k-th draft token, k = 1 .. K."""
    tokens = [answer.tokens for answer in answers]
    rounds = [len(answer.accepted) for answer in answers]
    mean, low, high = ratio_interval(tokens, rounds)
    accepted = torch.tensor([count for answer in answers for count in answer.accepted])
    shares = (accepted[:, None] > torch.arange(canvas_length)).float().mean(dim=0)
    return {
        "mean_acceptance_length": round(mean, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "acceptance_by_position": [round(share, 4) for share in shares.tolist()],
        "answers": len(answers),
        "tokens": sum(tokens),
        "rounds": sum(rounds),
    }


def answers_of(
    matches: torch.Tensor, starts: torch.Tensor, examples: Sequence[Example], drafts_at_once: bool
) -> list[Decoded]:
    """matches [batch, longest answer, K] and starts [batch, longest answer] of the canvases of `CanvasPlan.every`."""
    length = matches.shape[-1]
    positions = starts[..., None] + torch.arange(length)
    drafted = matches.gather(-1, positions.clamp(max=length - 1)) & (positions < length)
    pairs = zip(drafted, examples, strict=True)
    return [decoded(rows, example.answer_length, drafts_at_once) for rows, example in pairs]
