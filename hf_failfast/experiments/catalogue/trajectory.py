"""What happens round by round?"""

from ...measure.tracing import TracedRound
from .. import plots
from ..base import Experiment, Outcome, Setup
from ..tables import Column, Row
from ..traces import STORED, traces


def run(setup: Setup) -> Outcome:
    """Every round of every prompt."""
    rows = [
        _row(prompt, index, traced)
        for prompt, found in enumerate(traces(setup))
        for index, traced in enumerate(found.rounds)
    ]
    return Outcome(rows, {"prompts": len(setup.prompts)})


def _row(prompt: int, index: int, traced: TracedRound) -> Row:
    return {
        "prompt": prompt,
        "round": index,
        "drafted": len(traced.draft_ids),
        "accepted": traced.accepted_own,
        "emitted": len(traced.emitted_ids),
        "passes": traced.passes,
        "lowest_confidence": min(traced.confidence, default=None),
        "draft_ms": 1000 * traced.draft_seconds,
        "verify_ms": 1000 * traced.verify_seconds,
    }


EXPERIMENT = Experiment(
    question=__doc__,
    run=run,
    columns=(
        Column("prompt", "prompt"),
        Column("round", "round"),
        Column("drafted", "drafted"),
        Column("accepted", "accepted"),
        Column("lowest confidence", "lowest_confidence", ".2f"),
        Column("draft, ms", "draft_ms", ".1f"),
        Column("verify, ms", "verify_ms", ".1f"),
    ),
    plot=plots.trajectory,
    stored=f"--limit 1 {STORED}",
)
