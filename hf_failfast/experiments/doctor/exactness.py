"""Whether drafted answers equal plain ones, and where they part: by rounding, or by a fault."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch

from ...engine.causal_lm import takes_logits_to_keep

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Two computations of the difference of two logits are each off by at most the rounding.
ROUNDINGS = 2
# A target that reads several tokens at once and one by one with less agreement than this, as a share of its largest
# logit in float32, is a target that no speculative decoding is exact with.
LARGEST_ROUNDING = 1e-3


@dataclass(frozen=True)
class Parting:
    """Where a drafted answer leaves the plain one.

    prompt, position: which prompt, and which of its new tokens, from 0.
    plain_id, drafted_id: the two tokens; None where an answer had ended.
    margin: between the two best scores there, in plain decoding.
    gap: from the plain token's score to the drafted one's; None where one of them cannot be chosen.
    rounding: how far differences of two logits move, at the positions up to there, when the target reads the text in
        one forward in place of token by token. scale: the largest of these logits.
    """

    prompt: int
    position: int
    plain_id: int | None
    drafted_id: int | None
    margin: float
    gap: float | None
    rounding: float
    scale: float

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding explains it."""
        return self.gap is not None and self.gap <= ROUNDINGS * self.rounding

    @property
    def is_of_the_target(self) -> bool:
        """Whether the target itself, without any drafting, answers several tokens otherwise than one by one."""
        return self.rounding > LARGEST_ROUNDING * self.scale

    def as_dict(self) -> dict[str, Any]:
        kind = "near tie" if self.is_near_tie else "fault"
        return asdict(self) | {"kind": kind, "target_is_consistent": not self.is_of_the_target}


def compared(
    target: PreTrainedModel,
    prompts: Sequence[torch.Tensor],  # (1, n) each
    plain: Sequence[Sequence[int]],
    drafted: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """New ids of greedy answers beside each other, ready for JSON."""
    answers = zip(prompts, plain, drafted, strict=True)
    partings = [parting(target, index, *answer) for index, answer in enumerate(answers) if differ(*answer[1:])]
    return {
        "answers": len(prompts),
        "tokens": sum(map(len, plain)),
        "identical": len(prompts) - len(partings),
        "partings": [each.as_dict() for each in partings],
    }


def differ(plain: Sequence[int], drafted: Sequence[int]) -> bool:
    return list(plain) != list(drafted)


@torch.no_grad()
def parting(
    target: PreTrainedModel, index: int, prompt: torch.Tensor, plain: Sequence[int], drafted: Sequence[int]
) -> Parting:
    """Looks at the first difference of two answers to one prompt (1, n)."""
    pairs = zip_longest(plain, drafted)
    position, ids = next((place, pair) for place, pair in enumerate(pairs) if pair[0] != pair[1])
    stepwise = target.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=position + 1,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
    )
    scores = stepwise.scores[-1][0].float()
    best, second = scores.topk(2).values.tolist()
    known = [token_id for token_id in ids if token_id is not None]
    gap = float(scores[known[0]] - scores[known[1]]) if len(known) == len(ids) else math.inf
    rounding, scale = _rounding(target, stepwise.sequences[:, :-1], torch.cat(stepwise.logits).float())
    return Parting(index, position, *ids, _finite(best - second) or 0.0, _finite(gap), rounding, scale)


def _rounding(target: PreTrainedModel, text: torch.Tensor, stepwise: torch.Tensor) -> tuple[float, float]:
    """See `Parting`. text: (1, n + m - 1). stepwise: logits (m, vocabulary) of its last m tokens, one by one."""
    count = len(stepwise)
    kept = {"logits_to_keep": count} if takes_logits_to_keep(target) else {}
    at_once = target(input_ids=text, **kept).logits[0, -count:].float()
    best = stepwise.topk(2).indices
    values, others = (logits.gather(1, best) for logits in (stepwise, at_once.to(stepwise.device)))
    moved = ((values[:, 0] - values[:, 1]) - (others[:, 0] - others[:, 1])).abs().max()
    scale = float(values.abs().max())
    return max(float(moved), torch.finfo(target.dtype).eps * scale), scale


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
