"""What a pass and a verification cost beside a plain forward, and the speedup that these and an acceptance allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...decoding.stats import SpecDecodingStats
from ...policies.base import RoundCosts
from ...policies.goodput import seconds_at
from .promise import mean_length

Points = tuple[tuple[int, float], ...]

FREE: Points = ((0, 0.0), (1, 0.0))
FLAT: Points = ((0, 1.0), (1, 1.0))


@dataclass(frozen=True)
class RelativeCosts:
    """Measured costs in plain forwards; a plain forward is a round without a draft.

    forward_ms: of a plain forward. draft: of a drafter pass, by the tokens it reads besides the last one. verify: of
    the rest of a round, by its draft tokens, which is one less than the rows of the forward.
    """

    forward_ms: float
    draft: Points
    verify: Points

    @classmethod
    def of(cls, costs: RoundCosts) -> RelativeCosts | None:
        """None where too little was drafted to tell."""
        if min(len(costs.draft), len(costs.verify)) < 2:
            return None
        plain = seconds_at(costs.verify, 0)
        draft, verify = (tuple((n, each / plain) for n, each in points) for points in (costs.draft, costs.verify))
        return cls(1e3 * plain, draft, verify)

    def of_length(self, accepted: Sequence[float], length: int) -> float:
        """The speedup of drafts of one length, made in one pass each.

        accepted: the share of rounds that accept the first 1, 2, ... draft tokens.
        """
        tokens = mean_length(accepted[:length])
        read = round(length + tokens - 1)  # what was accepted in the round before, and the positions to fill
        return tokens / (max(seconds_at(self.draft, read), 0.0) + seconds_at(self.verify, length))

    def best(self, accepted: Sequence[float]) -> tuple[int, float]:
        """The fastest length and its speedup."""
        lengths = range(1, len(accepted) + 1)
        return max(((n, self.of_length(accepted, n)) for n in lengths), key=lambda found: found[1])

    def of_rounds(self, stats: SpecDecodingStats) -> float:
        """The speedup of the rounds that were made, host time aside."""
        cost = 0.0
        for record in stats.records:
            if passes := record.drafter_passes:
                cost += passes * max(seconds_at(self.draft, round(record.drafted / passes)), 0.0)
            cost += seconds_at(self.verify, record.drafted)
        return stats.emitted / cost

    def limits(self, accepted: Sequence[float], promised: Sequence[float]) -> dict[str, float]:
        """The best speedup if one thing were better: acceptance as promised, drafting without a cost, verification at
        the price of a plain forward."""
        better: Mapping[str, tuple[RelativeCosts, Sequence[float]]] = {
            "free drafting": (replace(self, draft=FREE), accepted),
            "free verification": (replace(self, verify=FLAT), accepted),
        }
        found = {name: costs.best(shares)[1] for name, (costs, shares) in better.items()}
        return found | ({"promised acceptance": self.best(promised)[1]} if promised else {})

    def as_dict(self) -> dict[str, Any]:
        return {
            "plain_forward_ms": self.forward_ms,
            "pass_by_tokens_read": {str(count): cost for count, cost in self.draft},
            "verification_by_rows": {str(count + 1): cost for count, cost in self.verify},
        }
