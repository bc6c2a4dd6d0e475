"""What a rejected draft still suggests: its rest, aligned to the text that the target wrote instead.

FailFast (arXiv 2512.20573, appendix E) puts the rest of a rejected draft after the new draft where the two meet. Here
it is a suggestion as any other: a branch, a tail, or all that a round proposes, which saves a pass of the drafter.
"""

from __future__ import annotations

from collections.abc import Sequence

from .suggestion import MatchTrust, Suggestion, View


class Reuse:
    """Suggestions out of the last rejected draft of each sequence."""

    def __init__(self) -> None:
        self.trust = MatchTrust()
        self._rests: dict[int, list[int]] = {}  # by row of the batch

    def reject(self, row: int, rest: list[int]) -> None:
        """Remembers a draft from its rejected token on: it may come later, if the draft has left out another one."""
        self._rests[row] = rest

    def suggest(self, view: View) -> Suggestion | None:
        """What followed in the rejected rest where text and sure draft end as it does; of equal matches the first."""
        rest = self._rests.get(view.row)
        if view.sure is None or not rest:
            return None
        before = [*view.text[-len(rest) :], *view.drafted[: view.sure]]
        matches = [(_common_end(before, rest[:end]), -end) for end in range(1, len(rest))]
        length, end = max(matches, default=(0, 0))
        following = rest[-end : -end + view.room - view.sure]
        if not length or not following:
            return None
        return Suggestion(view.sure, following, length, self.trust.probability(length), "reuse")


def _common_end(one: Sequence[int], other: Sequence[int]) -> int:
    """How many last tokens are the same."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count
