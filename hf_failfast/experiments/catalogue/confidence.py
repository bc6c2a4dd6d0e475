"""Does confidence predict acceptance? (A histogram and the expected calibration error.)"""

from collections.abc import Sequence

from .. import plots
from ..base import Experiment, Outcome, Setup
from ..tables import Column, Row
from ..traces import STORED, traces

BINS = 10


def run(setup: Setup) -> Outcome:
    """The histogram's bins; totals with `calibration_error`."""
    rounds = [traced for found in traces(setup) for traced in found.rounds]
    judged = [verdict for traced in rounds for verdict in traced.judged]
    rows = histogram(judged)
    totals = {
        "calibration_error": calibration_error(rows),
        "drafted": sum(len(traced.draft_ids) for traced in rounds),
        "judged": len(judged),
        "accepted": sum(verdict for _, verdict in judged),
    }
    return Outcome(rows, totals)


def histogram(judged: Sequence[tuple[float, bool]], bins: int = BINS) -> list[Row]:
    """Equal bins of confidence: tokens, accepted ones, mean confidence, share accepted (None where no token is)."""
    rows = []
    for index in range(bins):
        members = [(value, verdict) for value, verdict in judged if min(int(value * bins), bins - 1) == index]
        count, accepted = len(members), sum(verdict for _, verdict in members)
        rows.append(
            {
                "low": index / bins,
                "high": (index + 1) / bins,
                "tokens": count,
                "accepted": accepted,
                "rejected": count - accepted,
                "mean_confidence": sum(value for value, _ in members) / count if count else None,
                "accepted_share": accepted / count if count else None,
            }
        )
    return rows


def calibration_error(rows: Sequence[Row]) -> float:
    """Expected calibration error (arXiv 1706.04599): mean over tokens of |share accepted - mean confidence| of their
    bin; 0 without tokens."""
    total = sum(row["tokens"] for row in rows)
    gaps = (row["tokens"] * abs(row["accepted_share"] - row["mean_confidence"]) for row in rows if row["tokens"])
    return sum(gaps) / total if total else 0.0


EXPERIMENT = Experiment(
    question=__doc__,
    run=run,
    columns=(
        Column("confidence from", "low", ".1f"),
        Column("to", "high", ".1f"),
        Column("tokens", "tokens"),
        Column("accepted", "accepted"),
        Column("rejected", "rejected"),
        Column("mean confidence", "mean_confidence", ".2f"),
        Column("share accepted", "accepted_share", ".2f"),
    ),
    plot=plots.confidence,
    stored=f"--limit 3 {STORED}",
)
