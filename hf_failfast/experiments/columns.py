"""Which numbers of an experiment's rows a table shows, and how they are written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    title: str
    key: str
    form: str = ""  # of `format`

    def cell(self, row: dict[str, Any]) -> str:
        """Empty where the row has no such number."""
        value = row.get(self.key)
        return "" if value is None else format(value, "" if isinstance(value, str) else self.form)


class Interval(Column):
    """A speedup with the limits of its confidence interval, where there is one."""

    def cell(self, row: dict[str, Any]) -> str:
        low, high = row.get(f"{self.key}_ci95_low"), row.get(f"{self.key}_ci95_high")
        is_known = isinstance(low, float) and isinstance(high, float)
        return super().cell(row) + (f" ({low:.2f} to {high:.2f})" if is_known else "")


SPEED = (
    Interval("speedup", "speedup", ".2f"),
    Column("modelled speedup", "modelled_speedup", ".2f"),
    Column("mean acceptance length", "mean_acceptance_length", ".2f"),
    Column("acceptance rate", "acceptance_rate", ".0%"),
    Column("passes per round", "drafter_passes_per_round", ".2f"),
)
MEMORY = Column("peak memory, MiB", "peak_memory_mib", ".0f")

COLUMNS: dict[str, tuple[Column, ...]] = {
    "baselines": (Column("drafter", "drafter"), Column("n", "n"), *SPEED),
    "tau": (Column("tau", "confidence_threshold", ".2f"), *SPEED),
    "chunk-length": (Column("N", "chunk_length", ".0f"), *SPEED),
    "max-draft-length": (Column("N_max", "max_draft_length", ".0f"), *SPEED),
    "calibrate": (
        Column("tau", "confidence_threshold", ".2f"),
        Column("N", "chunk_length"),
        Column("N_max", "max_draft_length"),
        *SPEED,
    ),
    "denoising-steps": (Column("passes per chunk", "denoising_steps"), *SPEED),
    "specdiff": (Column("gamma", "gamma"), Column("T", "T"), *SPEED, MEMORY),
    "long-outputs": (Column("output tokens", "output_tokens"), *SPEED, MEMORY),
    "confidence": (
        Column("confidence from", "low", ".1f"),
        Column("to", "high", ".1f"),
        Column("tokens", "tokens"),
        Column("accepted", "accepted"),
        Column("rejected", "rejected"),
        Column("mean confidence", "mean_confidence", ".2f"),
        Column("share accepted", "accepted_share", ".2f"),
    ),
    "difficulty": (
        Column("runs longer than", "longer_than"),
        Column("runs", "runs"),
        Column("tokens", "tokens"),
        Column("share of all tokens", "share", ".0%"),
    ),
    "trajectory": (
        Column("prompt", "prompt"),
        Column("round", "round"),
        Column("drafted", "drafted"),
        Column("accepted", "accepted"),
        Column("lowest confidence", "lowest_confidence", ".2f"),
        Column("draft, ms", "draft_ms", ".1f"),
        Column("verify, ms", "verify_ms", ".1f"),
    ),
}


def cells(columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [[column.cell(row) for column in columns] for row in rows]
