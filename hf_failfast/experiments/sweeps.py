"""What experiments share that time ways of drafting against plain decoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..config import FailFastConfig
from ..drafters import DiffusionDrafter
from ..drafters.denoising import Denoising
from ..drafters.masked.session import MaskedDrafter
from ..measure import methods
from ..measure.metrics import summarise
from ..measure.records import SpeedRecord
from ..measure.timing import time_answers
from ..policies import ConfidenceThreshold
from . import plots
from .base import Axis, Experiment, Outcome, Setup
from .tables import SPEED, VERIFIED, Column, Row

# Of the stored runs; a forward costs these milliseconds there when nothing else runs.
STORED = (
    "--limit 1 --tasks failfast_humaneval,failfast_summaries --max-new-tokens 48 "
    "--target-latency-ms 34 --drafter-latency-ms 6"
)
# Fewer, for methods whose counts say what there is to say.
STORED_FEW = "--limit 1 --tasks failfast_summaries --max-new-tokens 24 --target-latency-ms 34 --drafter-latency-ms 6"


@dataclass(frozen=True)
class Variant:
    """A decoding method and what tells it from the others."""

    label: Row
    method: methods.Method


def fixed(label: Row, drafter: DiffusionDrafter, config: FailFastConfig) -> Variant:
    """Drafts of one chunk, in every round."""
    return Variant(label, _in_every_round(methods.fixed(drafter, config)))


def drafted(label: Row, drafter: DiffusionDrafter, config: FailFastConfig) -> Variant:
    """This package's decoding with a drafter and a chunk rule, which drafts in every round."""
    return Variant(label, _in_every_round(methods.drafted(drafter, config)))


def _in_every_round(method: methods.Method) -> methods.Method:
    """The method without the bound that stops drafting where it does not pay: an experiment asks whether it does, and
    its counts are not to depend on the clock."""
    config: FailFastConfig = method.arguments["failfast_config"]
    if config.length_policy != "confidence":
        return method
    config = config.with_options({"length_policy": ConfidenceThreshold(config)})
    return replace(method, arguments=method.arguments | {"failfast_config": config})


def sweep(
    question: str,
    axis: Axis,
    variants: Callable[[Setup], Sequence[Variant]],
    stored: str = "",
    more: tuple[Column, ...] = (),
) -> Experiment:
    """An experiment that times one variant per value of its axis; `more` columns follow those of speed."""
    return Experiment(question, timing(variants), (axis, *SPEED, *more), plots.sweep(axis), axis, stored)


METHOD = Column("method", "method")


def comparison(question: str, variants: Callable[[Setup], Sequence[Variant]], stored: str = "") -> Experiment:
    """An experiment that times methods which no number tells apart."""
    return Experiment(question, timing(variants), (METHOD, *SPEED, VERIFIED), plots.bars(METHOD), stored=stored)


def timing(variants: Callable[[Setup], Sequence[Variant]]) -> Callable[[Setup], Outcome]:
    """What an experiment runs that times these variants."""
    return lambda setup: Outcome(timed(setup, variants(setup)))


def by_option(name: str) -> Callable[[Setup], list[Variant]]:
    """One variant per value of tau, N or N_max, the other two as they are; where N is varied, N_max is at least N."""

    def variant(setup: Setup, value: float) -> Variant:
        config = with_number(setup.config, name, value)
        if name == "chunk_length":
            config = with_cap_of_a_chunk(config)
        return drafted({name: value}, setup.drafter, config)

    return lambda setup: [variant(setup, value) for value in setup.values]


def with_number(config: FailFastConfig, name: str, value: float) -> FailFastConfig:
    """The chunk rule with another tau (a float), N or N_max (integers)."""
    return config.with_options({name: value if name == "confidence_threshold" else int(value)})


def with_cap_of_a_chunk(config: FailFastConfig) -> FailFastConfig:
    """The chunk rule with N_max raised to N where it is less."""
    return replace(config, max_draft_length=max(config.max_draft_length, config.chunk_length))


def with_steps(drafter: DiffusionDrafter, steps: int) -> DiffusionDrafter:
    """The same weights, filling a chunk in `steps` passes."""
    if not isinstance(drafter, MaskedDrafter):
        raise ValueError(f"Denoising steps are for masked drafters; {type(drafter).__name__} drafts in one pass.")
    return drafter.with_denoising(Denoising(steps))


def timed(setup: Setup, variants: Sequence[Variant]) -> list[Row]:
    """One row per variant: its label and every speed metric, paired with plain decoding of the same prompts.

    All methods answer a prompt before the next one is asked, in random order.
    """
    return [
        variant.label | summarise([record.with_latencies(setup.latencies) for record in of_variant])
        for variant, of_variant in zip(variants, answered(setup, variants), strict=True)
    ]


def answered(setup: Setup, variants: Sequence[Variant]) -> list[list[SpeedRecord]]:
    """Every variant's records, one per prompt, beside plain decoding's."""
    if not setup.prompts:
        raise ValueError("There is no prompt to measure on.")
    runs = {
        index: partial(method.run, setup.target)
        for index, method in enumerate((methods.PLAIN, *(each.method for each in variants)))
    }
    _, *records = time_answers(
        runs, setup.target, setup.prompts, setup.repeats, setup.seed, setup.on_progress
    ).values()
    return records
