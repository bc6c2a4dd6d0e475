"""Which tau, N and N_max suit a pair on this machine: measured, one number after the other."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from ..config import FailFastConfig
from .base import Setup
from .sweeps import drafted, timed, with_cap_of_a_chunk, with_number
from .tables import SPEED, Column, Row

# What each number may become; N_max is raised to N where it is less.
GRID: dict[str, tuple[float, ...]] = {
    "confidence_threshold": (0.3, 0.45, 0.6, 0.75, 0.9),
    "chunk_length": (2, 3, 4, 6, 8, 10),
    "max_draft_length": (4, 8, 16, 32, 60),
}
COLUMNS = (
    Column("tau", "confidence_threshold", ".2f"),
    Column("N", "chunk_length"),
    Column("N_max", "max_draft_length"),
    *SPEED,
)


@dataclass(frozen=True)
class Calibration:
    """best: the fastest setting that was measured. rows: every setting with its speed, fastest first.

    tolerance: a setting is on the plateau if its speedup is at least (1 - tolerance) of the best.
    """

    best: FailFastConfig
    rows: list[Row]
    tolerance: float

    @property
    def plateau(self) -> list[Row]:
        """The settings that are as good as the best within the tolerance."""
        return [row for row in self.rows if row["speedup"] >= (1 - self.tolerance) * self.rows[0]["speedup"]]


def calibrate(setup: Setup, tolerance: float, sweeps: int = 2) -> Calibration:
    """Coordinate search from the setup's config: all values of one number with the others as they are, the fastest
    stays; again until a whole sweep over the three changes nothing, at most `sweeps` times.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"`tolerance` must be in [0, 1), but is {tolerance!r}.")
    measured: dict[FailFastConfig, Row] = {}
    best, parts = setup.config, sweeps * len(GRID)
    for sweep in range(sweeps):
        before = best
        for index, (name, values) in enumerate(GRID.items(), sweep * len(GRID)):
            others = (with_cap_of_a_chunk(with_number(best, name, value)) for value in values)
            candidates = list(dict.fromkeys([best, *others]))
            new = [config for config in candidates if config not in measured]
            measured |= zip(new, time_settings(setup.part(index / parts, (index + 1) / parts), new), strict=True)
            best = max(candidates, key=lambda config: measured[config]["speedup"])
        if best == before:
            break
    rows = sorted(measured.values(), key=lambda row: -row["speedup"])
    fastest = max(measured, key=lambda config: measured[config]["speedup"])
    return Calibration(fastest, rows, tolerance)


def time_settings(setup: Setup, configs: Iterable[FailFastConfig]) -> list[Row]:
    """One row per setting: its numbers and its speed."""
    return timed(setup, [drafted(asdict(config), setup.drafter, config) for config in configs])
