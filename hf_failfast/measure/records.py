"""What is kept of every generation, on the lm-eval request it answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

# lm-eval filters and caches strings; a request object is the one thing that model and task share.
_ATTRIBUTE = "failfast_records"


@dataclass(frozen=True)
class Latencies:
    """What a forward costs in the modelled speedup: of the target, over any number of tokens, and of the drafter."""

    target_ms: float
    drafter_ms: float

    def __post_init__(self) -> None:
        for name, value in (("target_latency_ms", self.target_ms), ("drafter_latency_ms", self.drafter_ms)):
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be a number of milliseconds > 0, but is {value!r}.")

    @classmethod
    def given(cls, target_ms: float | None, drafter_ms: float | None) -> "Latencies | None":
        """Both, or None for neither. Raises ValueError on one alone."""
        if target_ms is None and drafter_ms is None:
            return None
        if target_ms is None or drafter_ms is None:
            raise ValueError("`target_latency_ms` and `drafter_latency_ms` must be given together.")
        return cls(target_ms, drafter_ms)


@dataclass(frozen=True)
class SpeedRecord:
    """One answer of one method, and of plain decoding where the two were compared. None: not known of the method.

    seconds: wall clock of the `generate` call, prefill included; a batch's time is shared equally by its rows.
    new_tokens: ids up to and including the one that ended the answer.
    peak_memory_mib: on CUDA the most memory allocated during the call, on Linux the process's largest size during it,
        elsewhere its largest size so far.
    rounds: target forwards. passes: drafter forwards.
    identical: whether the ids equal those of plain decoding; None unless both were greedy.
    first_difference_margin: the target's gap between its two best logits where the two answers part. Rounding explains
        a small one; a large one is a bug.
    target_latency_ms, drafter_latency_ms: as given for the modelled speedup.
    """

    method: str
    seconds: float
    new_tokens: int
    peak_memory_mib: float
    rounds: int | None = None
    drafter_passes: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    draft_seconds: float | None = None
    verify_seconds: float | None = None
    plain_seconds: float | None = None
    plain_tokens: int | None = None
    identical: bool | None = None
    first_difference_margin: float | None = None
    target_latency_ms: float | None = None
    drafter_latency_ms: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The known fields, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


# Fields that do not add up over answers.
_COMBINE: dict[str, Callable[[Any], Any]] = {
    "method": lambda values: values[0],
    "peak_memory_mib": max,
    "identical": all,
    "first_difference_margin": max,
    "target_latency_ms": max,
    "drafter_latency_ms": max,
}


def combine(records: Sequence[SpeedRecord]) -> SpeedRecord:
    """Several answers of one method as one record: counts and times add up. A field is known if it is for any."""
    combined: dict[str, Any] = {}
    for field in fields(SpeedRecord):
        values = [value for record in records if (value := getattr(record, field.name)) is not None]
        combined[field.name] = _COMBINE.get(field.name, sum)(values) if values else None
    return SpeedRecord(**combined)


def attach(request: Any, record: SpeedRecord) -> None:
    """Adds a record to an lm-eval `Instance`."""
    if not hasattr(request, _ATTRIBUTE):
        setattr(request, _ATTRIBUTE, [])
    getattr(request, _ATTRIBUTE).append(record)


def record_of(request: Any) -> SpeedRecord | None:
    """The record of an lm-eval `Instance`, its repeats combined; None if it was answered from a cache.

    With several processes lm-eval asks some last request again and again, so that all have the same number: those
    answers are dropped here as they are there.
    """
    records = getattr(request, _ATTRIBUTE, [])[: request.repeats or 1]
    return combine(records) if records else None
