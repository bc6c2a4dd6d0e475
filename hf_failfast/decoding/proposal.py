"""What a round proposes to the target when it is more than the drafter's own draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..drafters import Draft
from ..engine.kernels.reference import RowOutcome


@dataclass(frozen=True)
class Proposal(Draft):
    """A draft whose first `own[b]` tokens are the drafter's; the rest came from somewhere else."""

    own: tuple[int, ...] = ()

    def accepted_own(self, outcome: Sequence[RowOutcome]) -> list[int]:
        """How many of the drafter's tokens were accepted."""
        return [min(row.accepted, count) for row, count in zip(outcome, self.own, strict=True)]

    def accepted_others(self, outcome: Sequence[RowOutcome]) -> list[int]:
        """How many of the other tokens were accepted."""
        rows = zip(outcome, self.accepted_own(outcome), strict=True)
        return [row.accepted - count for row, count in rows]
