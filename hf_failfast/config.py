"""The options of FailFast, validated once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args

Verifier = Literal["sample_and_match", "rejection"]
LengthPolicyName = Literal["confidence", "goodput"]

# The numbers that only the length policy `confidence` reads.
CHUNK_RULE = ("confidence_threshold", "chunk_length", "max_draft_length")


@dataclass(frozen=True)
class FailFastConfig:
    """How far a draft goes, and how samples verify it. Defaults: FailFast (arXiv 2512.20573), section 5.

    confidence_threshold: tau in [0, 1]; the draft grows while every confidence of its newest chunk is >= tau.
    chunk_length: N >= 1, the tokens one drafting step adds.
    max_draft_length: N_max >= 1, the cap on the tokens of one draft; it also cuts a chunk that would exceed it.
    verifier: what the target's samples do with a draft; both give exactly the target's distribution, and greedy
        decoding needs neither. `sample_and_match`: the drafter proposes its most likely tokens, and those that equal
        the target's own samples stay. `rejection`: the drafter's tokens are samples too, and speculative sampling
        (arXiv 2211.17192; with diffusion drafters SpecDiff, arXiv 2408.05636) accepts them by min(1, p / q). Drafters
        that cannot sample (`mode="reference"`, another tokenizer) have a one-hot q, for which the two are the same.
    draft_temperature: > 0, of the drafter's q; None: the `temperature` of the request, whose top-k, top-p and other
        warpers shape q as they shape p. For `rejection` only.
    length_policy: `confidence`, the rule of these three numbers; or `goodput`, which needs none of them: it measures
        what drafting and verifying cost on this machine and learns what confidence is worth (`goodput.Goodput`).
    """

    confidence_threshold: float = 0.45
    chunk_length: int = 10
    max_draft_length: int = 60
    verifier: Verifier = "sample_and_match"
    draft_temperature: float | None = None
    length_policy: LengthPolicyName = "confidence"

    def __post_init__(self) -> None:
        tau = self.confidence_threshold
        if isinstance(tau, bool) or not isinstance(tau, Real) or math.isnan(tau) or not 0 <= tau <= 1:
            raise ValueError(f"`confidence_threshold` must be a number in [0, 1], but is {tau!r}.")
        for name in ("chunk_length", "max_draft_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ValueError(f"`{name}` must be an integer >= 1, but is {value!r}.")
        if self.verifier not in get_args(Verifier):
            raise ValueError(f"`verifier` must be one of {list(get_args(Verifier))}, but is {self.verifier!r}.")
        if self.length_policy not in get_args(LengthPolicyName):
            raise ValueError(
                f"`length_policy` must be one of {list(get_args(LengthPolicyName))}, but is {self.length_policy!r}."
            )
        self._check_draft_temperature()

    def _check_draft_temperature(self) -> None:
        value = self.draft_temperature
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
            raise ValueError(f"`draft_temperature` must be a finite number > 0 or None, but is {value!r}.")
        if self.verifier != "rejection":
            raise ValueError(
                f"`draft_temperature`={value!r} needs `verifier='rejection'`, but that is {self.verifier!r}."
            )

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
