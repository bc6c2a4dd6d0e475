"""How much text is easy? (The share of tokens in runs of right tokens longer than 1 to 50.)"""

from collections.abc import Sequence

from ...measure.tracing import TracedRound
from .. import plots
from ..base import Experiment, Outcome, Setup
from ..tables import Column
from ..traces import STORED, traces

BOUNDS = (0, 1, 5, 10, 20, 50)


def run(setup: Setup) -> Outcome:
    """The share of all tokens in runs longer than each bound; all runs' lengths."""
    found = traces(setup)
    lengths = [length for one in found for length in run_lengths(one.rounds)]
    total = sum(len(traced.emitted_ids) for one in found for traced in one.rounds)
    rows = []
    for bound in BOUNDS:
        longer = [length for length in lengths if length > bound]
        rows.append({"longer_than": bound, "runs": len(longer), "tokens": sum(longer), "share": sum(longer) / total})
    return Outcome(rows, {"tokens": total, "run_lengths": sorted(lengths, reverse=True)})


def run_lengths(rounds: Sequence[TracedRound]) -> list[int]:
    """Lengths of the runs of tokens in which the drafter was not found wrong.

    Accepted draft tokens make up runs, and so do tokens after a whole accepted draft, for which the drafter was not
    asked. A token drafted otherwise ends a run and belongs to none, as does one of a round without a draft.
    """
    lengths, current = [], 0
    for traced in rounds:
        own, num_emitted = traced.accepted_own, len(traced.emitted_ids)
        if own == num_emitted or own == len(traced.draft_ids) > 0:
            current += num_emitted
        else:
            lengths.append(current + own)
            current = num_emitted - own - 1
    return [length for length in [*lengths, current] if length]


EXPERIMENT = Experiment(
    question=__doc__,
    run=run,
    columns=(
        Column("runs longer than", "longer_than"),
        Column("runs", "runs"),
        Column("tokens", "tokens"),
        Column("share of all tokens", "share", ".0%"),
    ),
    plot=plots.difficulty,
    stored=f"--limit 3 {STORED}",
)
