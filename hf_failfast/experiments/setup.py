"""What every experiment needs: a pair, prompts, a stopwatch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import FailFastConfig
from ..drafters import DiffusionDrafter
from ..measure.methods import PLAIN, Method
from ..measure.metrics import summarise
from ..measure.records import Latencies
from ..measure.timing import Prompts, time_answers

Row = dict[str, Any]
Progress = Callable[[float], None]  # told the share that is done, 0..1


@dataclass(frozen=True)
class Bench:
    """A pair and the prompts it is measured on.

    config: the chunk rule wherever an experiment does not vary it.
    prompts: one each; their generation arguments say whether answers are greedy or sampled.
    values: what the experiment's axis takes; None for the experiment's own.
    assistant: an autoregressive draft model, read as a drafter of one token per pass; None where none is at hand.
    repeats: runs per prompt and method; that of median time counts.
    """

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    drafter: DiffusionDrafter
    config: FailFastConfig
    prompts: Sequence[Prompts]
    values: tuple[float, ...] | None = None
    assistant: DiffusionDrafter | None = None
    repeats: int = 1
    latencies: Latencies | None = None
    seed: int = 0
    on_progress: Progress = field(default=lambda done: None)


@dataclass(frozen=True)
class Outcome:
    """What an experiment found: rows of a table, and numbers about all of them."""

    rows: list[Row]
    totals: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """A decoding method and what tells it from the others."""

    label: Row
    arm: Method


def timed(bench: Bench, variants: Sequence[Variant]) -> list[Row]:
    """One row per variant: its label and every speed metric, paired with plain decoding of the same prompts.

    All methods answer a prompt before the next one is asked, in random order.
    """
    if not bench.prompts:
        raise ValueError("There is no prompt to measure on.")
    arms = {
        index: partial(method.run, bench.target)
        for index, method in enumerate((PLAIN, *(each.arm for each in variants)))
    }
    _, *records = time_answers(
        arms, bench.target, bench.prompts, bench.repeats, bench.seed, bench.on_progress
    ).values()
    return [
        variant.label | summarise([record.with_latencies(bench.latencies) for record in of_variant])
        for variant, of_variant in zip(variants, records, strict=True)
    ]
