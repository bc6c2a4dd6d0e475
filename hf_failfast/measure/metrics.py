"""The speed metrics: what each takes from an answer's record, and how answers are put together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .bootstrap import PairedSpeedup, paired_speedup
from .records import SpeedRecord

Pair = tuple[float, float]
PairedAnswer = tuple[float, int, float, int]  # seconds, tokens, plain seconds, plain tokens
NOT_KNOWN = "N/A"


@dataclass(frozen=True)
class SpeedMetric:
    """One row of the results.

    value: an answer's share, kept in the samples; None where the method does not tell, which drops the row.
    aggregate: the row's number out of all answers' shares.
    """

    name: str
    value: Callable[[SpeedRecord], Any]
    aggregate: Callable[[Sequence[Any]], float | str]
    higher_is_better: bool | None = None


def ratio(pairs: Iterable[Pair]) -> float:
    """Sum of numerators over sum of denominators; 0 where nothing was counted."""
    numerators, denominators = zip(*pairs, strict=True)
    return sum(numerators) / sum(denominators) if sum(denominators) else 0.0


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _fraction(numerator: str, denominator: str) -> Callable[[SpeedRecord], Pair | None]:
    def value(record: SpeedRecord) -> Pair | None:
        top, bottom = getattr(record, numerator), getattr(record, denominator)
        return None if top is None or bottom is None else (top, bottom)

    return value


def _other_share(record: SpeedRecord) -> Pair | None:
    if record.draft_seconds is None or record.verify_seconds is None:
        return None
    return record.seconds - record.draft_seconds - record.verify_seconds, record.seconds


def _paired(record: SpeedRecord) -> PairedAnswer | None:
    if record.plain_seconds is None or record.plain_tokens is None:
        return None
    return record.seconds, record.new_tokens, record.plain_seconds, record.plain_tokens


@lru_cache(maxsize=16)  # six metrics are parts of one bootstrap
def _compared(answers: tuple[PairedAnswer, ...]) -> PairedSpeedup:
    columns: Any = zip(*answers, strict=True)
    return paired_speedup(*columns)


def speedup_of(records: Sequence[SpeedRecord]) -> PairedSpeedup:
    """The speedup over plain decoding and its interval, of records beside plain decoding's."""
    return _compared(tuple(answer for record in records if (answer := _paired(record)) is not None))


def _speedup(field: str) -> Callable[[Sequence[PairedAnswer]], float | str]:
    """One field of the paired speedup over all answers; an interval needs two of them."""

    def aggregate(answers: Sequence[PairedAnswer]) -> float | str:
        if field.endswith(("_low", "_high")) and len(answers) < 2:
            return NOT_KNOWN
        return getattr(_compared(tuple(answers)), field)

    return aggregate


def _margin(record: SpeedRecord) -> tuple[float | None] | None:
    return None if record.identical is None else (record.first_difference_margin,)


def _largest_margin(margins: Sequence[tuple[float | None]]) -> float | str:
    return max((margin for (margin,) in margins if margin is not None), default=NOT_KNOWN)


def _modelled_seconds(record: SpeedRecord) -> Pair | None:
    """(plain, speculative) seconds of the paper's cost model: passes x draft latency + rounds x target latency.

    Measured latencies: the target's is plain decoding's time per token of this prompt; the drafter's passes are
    charged the time they took.
    """
    if record.rounds is None or record.drafter_passes is None:
        return None
    if record.target_latency_ms is not None and record.drafter_latency_ms is not None:
        target = record.target_latency_ms / 1000
        drafting = record.drafter_passes * record.drafter_latency_ms / 1000
    elif record.plain_seconds is not None and record.plain_tokens and record.draft_seconds is not None:
        target = record.plain_seconds / record.plain_tokens
        drafting = record.draft_seconds
    else:
        return None
    return record.new_tokens * target, drafting + record.rounds * target


SPEED_METRICS = (
    SpeedMetric("tokens_per_second", _fraction("new_tokens", "seconds"), ratio, True),
    SpeedMetric("plain_tokens_per_second", _fraction("plain_tokens", "plain_seconds"), ratio),
    SpeedMetric("speedup", _paired, _speedup("speedup"), True),
    SpeedMetric("speedup_ci95_low", _paired, _speedup("speedup_low"), True),
    SpeedMetric("speedup_ci95_high", _paired, _speedup("speedup_high"), True),
    SpeedMetric("macro_speedup", _paired, _speedup("macro_speedup"), True),
    SpeedMetric("macro_speedup_ci95_low", _paired, _speedup("macro_speedup_low"), True),
    SpeedMetric("macro_speedup_ci95_high", _paired, _speedup("macro_speedup_high"), True),
    SpeedMetric("modelled_speedup", _modelled_seconds, ratio, True),
    SpeedMetric("mean_acceptance_length", _fraction("new_tokens", "rounds"), ratio, True),
    SpeedMetric("acceptance_rate", _fraction("accepted", "drafted"), ratio, True),
    SpeedMetric("drafter_passes_per_round", _fraction("drafter_passes", "rounds"), ratio),
    SpeedMetric("draft_share", _fraction("draft_seconds", "seconds"), ratio),
    SpeedMetric("verify_share", _fraction("verify_seconds", "seconds"), ratio),
    SpeedMetric("other_share", _other_share, ratio),
    SpeedMetric("identical", lambda record: None if record.identical is None else float(record.identical), mean, True),
    SpeedMetric("first_difference_margin", _margin, _largest_margin, False),
    SpeedMetric("new_tokens", lambda record: record.new_tokens, mean),
    SpeedMetric("peak_memory_mib", lambda record: record.peak_memory_mib, max, False),
)


def values_of(record: SpeedRecord) -> dict[str, Any]:
    """Every metric's share of one answer, by metric name."""
    values = {metric.name: metric.value(record) for metric in SPEED_METRICS}
    return {name: value for name, value in values.items() if value is not None}


def summarise(records: Sequence[SpeedRecord]) -> dict[str, Any]:
    """Every metric over some answers of one method, and their number."""
    shares = [values_of(record) for record in records]
    summary: dict[str, Any] = {"answers": len(records)}
    for metric in SPEED_METRICS:
        known = [share[metric.name] for share in shares if metric.name in share]
        if known:
            summary[metric.name] = metric.aggregate(known)
    return summary
