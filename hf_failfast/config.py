"""The three numbers of FailFast, validated once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class FailFastConfig:
    """How far a draft goes. Defaults: FailFast (arXiv 2512.20573), section 5.

    confidence_threshold: tau in [0, 1]; the draft grows while every confidence of its newest chunk is >= tau.
    chunk_length: N >= 1, the tokens one drafting step adds.
    max_draft_length: N_max >= 1, the cap on the tokens of one draft; it also cuts a chunk that would exceed it.
    """

    confidence_threshold: float = 0.45
    chunk_length: int = 10
    max_draft_length: int = 60

    def __post_init__(self) -> None:
        tau = self.confidence_threshold
        if isinstance(tau, bool) or not isinstance(tau, Real) or math.isnan(tau) or not 0 <= tau <= 1:
            raise ValueError(f"`confidence_threshold` must be a number in [0, 1], but is {tau!r}.")
        for name in ("chunk_length", "max_draft_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ValueError(f"`{name}` must be an integer >= 1, but is {value!r}.")

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The option names a caller may pass as keywords."""
        return tuple(field.name for field in fields(cls))

    def with_options(self, options: Mapping[str, Any]) -> "FailFastConfig":
        """A copy with the given options changed. Raises ValueError on an unknown name or an out-of-range value."""
        unknown = sorted(set(options) - set(self.field_names()))
        if unknown:
            raise ValueError(f"Unknown FailFast option {unknown}; the options are {list(self.field_names())}.")
        return replace(self, **options)
