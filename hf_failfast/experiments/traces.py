"""Experiments that look into the rounds: how well confidence predicts acceptance, and where the easy text is."""

from collections.abc import Sequence
from typing import Any

from ..measure.tracing import Trace, TracedRound, trace
from .setup import Bench, Outcome, Row

CONFIDENCE_BINS = 10
RUN_LENGTHS = (1, 5, 10, 20, 50)


def traces(bench: Bench) -> list[Trace]:
    """One traced FailFast answer per prompt."""
    found = []
    for done, prompt in enumerate(bench.prompts, 1):
        found.append(
            trace(
                bench.target,
                prompt.ids,
                bench.drafter,
                attention_mask=prompt.attention_mask,
                max_length=prompt.max_length,
                failfast_config=bench.config,
                **prompt.generation_kwargs,
            )
        )
        bench.on_progress(done / len(bench.prompts))
    return found


def confidence_histogram(judged: Sequence[tuple[float, bool]], bins: int = CONFIDENCE_BINS) -> list[Row]:
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


def calibration_error(histogram: Sequence[Row]) -> float:
    """Expected calibration error (arXiv 1706.04599): mean over tokens of |share accepted - mean confidence| of their
    bin; 0 without tokens."""
    total = sum(row["tokens"] for row in histogram)
    gaps = (row["tokens"] * abs(row["accepted_share"] - row["mean_confidence"]) for row in histogram if row["tokens"])
    return sum(gaps) / total if total else 0.0


def run_lengths(rounds: Sequence[TracedRound]) -> list[int]:
    """Lengths of the runs of tokens in which the drafter was not found wrong.

    Accepted tokens make up runs. A bonus token behind a whole accepted draft continues one, since the drafter was not
    asked for it; behind a rejected token it ends one and belongs to none, as does one of a round without a draft.
    """
    lengths, current = [], 0
    for traced in rounds:
        current += traced.accepted
        if not traced.has_bonus:
            continue
        if traced.draft_ids and traced.accepted == len(traced.draft_ids):
            current += 1
        else:
            lengths.append(current)
            current = 0
    return [length for length in [*lengths, current] if length]


def run_confidence(bench: Bench) -> Outcome:
    """The histogram's bins; totals with `calibration_error`."""
    rounds = [traced for found in traces(bench) for traced in found.rounds]
    judged = [verdict for traced in rounds for verdict in traced.judged]
    rows = confidence_histogram(judged)
    drafted = sum(len(traced.draft_ids) for traced in rounds)
    totals = {
        "calibration_error": calibration_error(rows),
        "drafted": drafted,
        "judged": len(judged),
        "accepted": sum(verdict for _, verdict in judged),
    }
    return Outcome(rows, totals)


def run_difficulty(bench: Bench) -> Outcome:
    """The share of all tokens in runs longer than each length; all runs' lengths."""
    found = traces(bench)
    lengths = [length for one in found for length in run_lengths(one.rounds)]
    total = sum(len(traced.emitted_ids) for one in found for traced in one.rounds)
    rows = [
        {
            "longer_than": bound,
            "runs": sum(length > bound for length in lengths),
            "tokens": sum(length for length in lengths if length > bound),
            "share": sum(length for length in lengths if length > bound) / total,
        }
        for bound in (0, *RUN_LENGTHS)
    ]
    return Outcome(rows, {"tokens": total, "run_lengths": sorted(lengths, reverse=True)})


def run_trajectory(bench: Bench) -> Outcome:
    """Every round of every prompt."""
    rows = [
        _round_row(prompt, index, traced)
        for prompt, found in enumerate(traces(bench))
        for index, traced in enumerate(found.rounds)
    ]
    return Outcome(rows, {"prompts": len(bench.prompts)})


def _round_row(prompt: int, index: int, traced: TracedRound) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "round": index,
        "drafted": len(traced.draft_ids),
        "accepted": traced.accepted,
        "emitted": len(traced.emitted_ids),
        "passes": traced.passes,
        "lowest_confidence": min(traced.confidence, default=None),
        "draft_ms": 1000 * traced.draft_seconds,
        "verify_ms": 1000 * traced.verify_seconds,
    }
