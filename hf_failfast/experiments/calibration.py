"""Which tau, N and N_max suit a pair on this machine: measured, one number after the other."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..config import FailFastConfig
from ..measure.methods import drafted
from .setup import Bench, Row, Variant, timed

# What each number may become; N_max is raised to N where it is less.
GRID: dict[str, tuple[float, ...]] = {
    "confidence_threshold": (0.3, 0.45, 0.6, 0.75, 0.9),
    "chunk_length": (2, 3, 4, 6, 8, 10),
    "max_draft_length": (4, 8, 16, 32, 60),
}


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
        """The settings that are as good as the best, as far as this measurement can tell."""
        return [row for row in self.rows if row["speedup"] >= (1 - self.tolerance) * self.rows[0]["speedup"]]


def calibrate(bench: Bench, tolerance: float, sweeps: int = 2) -> Calibration:
    """Coordinate search from the bench's config: all values of one number with the others as they are, the fastest
    stays; again until a whole sweep over the three changes nothing, at most `sweeps` times.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"`tolerance` must be in [0, 1), but is {tolerance!r}.")
    measured: dict[FailFastConfig, Row] = {}
    best = bench.config
    for sweep in range(sweeps):
        before = best
        for part, (name, values) in enumerate(GRID.items()):
            candidates = list(dict.fromkeys([best, *(_with(best, name, value) for value in values)]))
            steps = sweep * len(GRID) + part
            _measure(bench, candidates, measured, steps / (sweeps * len(GRID)), 1 / (sweeps * len(GRID)))
            best = max(candidates, key=lambda config: measured[config]["speedup"])
        if best == before:
            break
    rows = sorted(measured.values(), key=lambda row: -row["speedup"])
    fastest = max(measured, key=lambda config: measured[config]["speedup"])
    return Calibration(fastest, rows, tolerance)


def confirm(bench: Bench, configs: Sequence[FailFastConfig]) -> list[Row]:
    """The settings on other prompts than those they were chosen on."""
    return timed(bench, [_variant(bench, config) for config in dict.fromkeys(configs)])


def _measure(
    bench: Bench, configs: Sequence[FailFastConfig], measured: dict[FailFastConfig, Row], start: float, share: float
) -> None:
    """Adds the rows of those settings that have none."""
    new = [config for config in configs if config not in measured]
    within = replace(bench, on_progress=lambda done: bench.on_progress(start + share * done))
    measured |= zip(new, timed(within, [_variant(bench, config) for config in new]), strict=True)


def _variant(bench: Bench, config: FailFastConfig) -> Variant:
    return Variant(asdict(config), drafted(bench.drafter, config))


def _with(config: FailFastConfig, name: str, value: Any) -> FailFastConfig:
    changed = config.with_options({name: value if name == "confidence_threshold" else int(value)})
    return replace(changed, max_draft_length=max(changed.max_draft_length, changed.chunk_length))
