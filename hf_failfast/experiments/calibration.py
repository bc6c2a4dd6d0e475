"""Which tau, N and N_max suit a pair on this machine: measured, one number after the other."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ..config import FailFastConfig
from ..measure import methods
from ..measure.bootstrap import PairedSpeedup, paired_speedup
from ..measure.metrics import summarise
from ..measure.records import SpeedRecord
from .base import Setup
from .sweeps import Variant, answered, timed, with_cap_of_a_chunk, with_number
from .tables import SPEED, Column, Row

# What each number may become; N_max is raised to N where it is less.
GRID: dict[str, tuple[float, ...]] = {
    "confidence_threshold": (0.3, 0.45, 0.6, 0.75, 0.9),
    "chunk_length": (2, 3, 4, 6, 8, 10),
    "max_draft_length": (4, 8, 16, 32, 60),
}
# Of fewer prompts all may be faster by chance.
LEAST_PROMPTS = 4
START, FASTEST = "the start", "the fastest"
COLUMNS = (
    Column("setting", "setting"),
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


@dataclass(frozen=True)
class Confirmation:
    """A search's fastest setting beside the one it started from, on other prompts.

    over_start: its speed over the start's on the same prompts, with the 95 % interval; None if it is the start.
    rows: both settings' rows, the recommended one first; they say which is which under `setting`.
    """

    fastest: FailFastConfig
    start: FailFastConfig
    over_start: PairedSpeedup | None
    rows: list[Row]

    @property
    def is_faster(self) -> bool:
        """Whether the gain is beyond noise."""
        over = self.over_start
        return over is not None and over.prompts >= LEAST_PROMPTS and over.speedup_low > 1

    @property
    def recommended(self) -> FailFastConfig:
        """The start, unless another one is faster beyond noise: what was fastest of many was also the luckiest."""
        return self.fastest if self.is_faster else self.start


def confirm(setup: Setup, fastest: FailFastConfig) -> Confirmation:
    """Both settings on the setup's prompts, answered one after the other in random order."""
    names = {fastest: FASTEST} | {setup.config: START}
    variants = [
        Variant({"setting": name} | asdict(config), methods.drafted(setup.drafter, config))
        for config, name in names.items()
    ]
    records = answered(setup, variants)
    rows = [each.label | summarise(found) for each, found in zip(variants, records, strict=True)]
    over_start = None if len(records) == 1 else _over(*records)
    found = Confirmation(fastest, setup.config, over_start, rows)
    return found if found.is_faster else replace(found, rows=rows[::-1])


def _over(ours: Sequence[SpeedRecord], theirs: Sequence[SpeedRecord]) -> PairedSpeedup:
    return paired_speedup(
        [each.seconds for each in ours],
        [each.new_tokens for each in ours],
        [each.seconds for each in theirs],
        [each.new_tokens for each in theirs],
    )


def time_settings(setup: Setup, configs: Sequence[FailFastConfig]) -> list[Row]:
    """One row per setting: its numbers and its speed."""
    labels = [asdict(config) | ({"setting": START} if config == setup.config else {}) for config in configs]
    rows = zip(labels, configs, strict=True)
    return timed(setup, [Variant(label, methods.drafted(setup.drafter, config)) for label, config in rows])
