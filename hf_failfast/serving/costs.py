"""What drafting and verifying cost inside a server, from its own steps: nothing is run to be timed."""

from __future__ import annotations

from ..policies.base import RoundCosts

# Steps of a batch size, with drafts of different lengths, before its costs are known.
LEAST_STEPS = 8
# How fast old steps are forgotten: the server's load changes.
MEMORY = 0.98


class Line:
    """Seconds = at_zero + slope x count, by least squares over the newest points; neither is negative."""

    def __init__(self) -> None:
        self.num_points = 0
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, count: float, seconds: float) -> None:
        self.num_points += 1
        self._weight, self._x, self._y, self._xx, self._xy = (
            MEMORY * old + new
            for old, new in zip(
                (self._weight, self._x, self._y, self._xx, self._xy),
                (1.0, count, seconds, count * count, count * seconds),
                strict=True,
            )
        )

    @property
    def _spread(self) -> float:
        return self._xx / self._weight - (self._x / self._weight) ** 2 if self._weight else 0.0

    @property
    def is_known(self) -> bool:
        """Whether there are enough points, at more than one count."""
        return self.num_points >= LEAST_STEPS and self._spread > 0.05

    def at(self, count: float) -> float:
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        slope = max((self._xy / self._weight - mean_x * mean_y) / self._spread, 0.0) if self._spread > 0 else 0.0
        return max(mean_y + slope * (count - mean_x), 0.1 * mean_y)


class StepCosts:
    """Lines by batch size (powers of two): of a drafter pass by the tokens it reads besides the last one, and of the
    server's step between two drafts by the draft tokens it verifies, both a sequence. Other sequences that the server
    runs, and all that waits for it between two steps, are in the step's time.
    """

    def __init__(self) -> None:
        self._draft: dict[int, Line] = {}
        self._verify: dict[int, Line] = {}

    def add_draft(self, num_rows: int, num_read: float, seconds: float) -> None:
        self._draft.setdefault(_size(num_rows), Line()).add(num_read, seconds)

    def add_step(self, num_rows: int, num_drafted: float, seconds: float) -> None:
        self._verify.setdefault(_size(num_rows), Line()).add(num_drafted, seconds)

    def is_known(self, num_rows: int) -> bool:
        lines = self._draft.get(_size(num_rows)), self._verify.get(_size(num_rows))
        return all(line is not None and line.is_known for line in lines)

    def measure(self, num_rows: int, num_tokens: int) -> RoundCosts:
        """The costs of such a batch, once they are known (`LengthPolicy` names the arguments)."""
        draft, verify = self._draft[_size(num_rows)], self._verify[_size(num_rows)]
        return RoundCosts(
            tuple((count, draft.at(count)) for count in (0, 16)),
            tuple((count, verify.at(count)) for count in (0, 16)),
        )


def _size(num_rows: int) -> int:
    return 1 << (num_rows - 1).bit_length()
