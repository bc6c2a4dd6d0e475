"""What is kept of a timed answer: alone, beside plain decoding's, and on the lm-eval request it answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from typing import Any

import torch
from transformers import PreTrainedModel

from ..decoding.stats import SpecDecodingStats
from ..engine.causal_lm import takes_logits_to_keep

# lm-eval filters and caches strings; a request object is the one thing that model and task share.
_ATTRIBUTE = "failfast_records"


@dataclass(frozen=True)
class Latencies:
    """What a forward costs in the modelled speedup: of the target, over any number of tokens, and of the drafter."""

    target_latency_ms: float
    drafter_latency_ms: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
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
    token_ids, stats: the answer and the counts of this package's methods; they are not written.
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
    token_ids: tuple[int, ...] | None = None
    stats: SpecDecodingStats | None = None

    def as_dict(self) -> dict[str, Any]:
        """The known fields, ready for JSON."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return {name: value for name, value in known.items() if name not in ("token_ids", "stats")}

    def with_latencies(self, latencies: Latencies | None) -> "SpeedRecord":
        """The record with the latencies of the modelled speedup; None to have them measured."""
        return self if latencies is None else replace(self, **vars(latencies))


def counts_of(stats: SpecDecodingStats) -> dict[str, Any]:
    """The fields of a record that this package's own counts tell."""
    names = ("rounds", "drafter_passes", "drafted", "accepted", "draft_seconds", "verify_seconds")
    return {name: getattr(stats, name) for name in names} | {"stats": stats}


def paired(
    record: SpeedRecord,
    plain: SpeedRecord,
    model: PreTrainedModel,
    prompt_ids: torch.Tensor,  # (1, n), without padding
    is_greedy: bool,
) -> SpeedRecord:
    """The record beside plain decoding's. Sampled answers differ by chance: they are not compared."""
    found: dict[str, Any] = {"plain_seconds": plain.seconds, "plain_tokens": plain.new_tokens}
    if is_greedy:
        assert record.token_ids is not None and plain.token_ids is not None
        found["identical"] = record.token_ids == plain.token_ids
        if not found["identical"]:
            found["first_difference_margin"] = difference_margin(model, prompt_ids, record.token_ids, plain.token_ids)
    return replace(record, **found)


@torch.no_grad()
def difference_margin(
    model: PreTrainedModel, prompt_ids: torch.Tensor, token_ids: Sequence[int], plain_ids: Sequence[int]
) -> float:
    """The target's gap between its two largest logits, in fp32, where two different answers to a prompt part.

    Recomputed in one forward over what they share; decoding itself may have rounded differently, which is the point.
    """
    shared = next(index for index, (a, b) in enumerate(zip_longest(token_ids, plain_ids)) if a != b)
    prefix = torch.cat([prompt_ids, prompt_ids.new_tensor([plain_ids[:shared]])], dim=1)
    kept = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    best, second = model(input_ids=prefix, **kept).logits[0, -1].float().topk(2).values.tolist()
    return best - second


# Fields that do not add up over answers.
_COMBINE: dict[str, Callable[[Any], Any]] = {
    "method": lambda values: values[0],
    "peak_memory_mib": max,
    "identical": all,
    "first_difference_margin": max,
    "target_latency_ms": max,
    "drafter_latency_ms": max,
    "token_ids": lambda values: None,
    "stats": SpecDecodingStats.total,
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
