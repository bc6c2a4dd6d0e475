"""What every experiment needs: a pair, prompts, a stopwatch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import FailFastConfig
from ..drafters import DiffusionDrafter
from ..measure.arms import PLAIN, Answer, Arm, Prompts
from ..measure.metrics import summarise
from ..measure.pairing import paired_record
from ..measure.records import Latencies, SpeedRecord
from ..measure.timing import side_by_side

WARM_UP_TOKENS = 16

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
    arm: Arm


def timed(bench: Bench, variants: Sequence[Variant]) -> list[Row]:
    """One row per variant: its label and every speed metric, paired with plain decoding of the same prompts.

    All methods answer a prompt before the next one is asked, in random order.
    """
    if not bench.prompts:
        raise ValueError("There is no prompt to measure on.")
    arms = [partial(arm.run, bench.target) for arm in (PLAIN, *(each.arm for each in variants))]
    first = bench.prompts[0]
    short = replace(first, max_length=min(first.max_length, first.ids.shape[1] + WARM_UP_TOKENS))
    timings = side_by_side(dict(enumerate(arms)), bench.prompts, bench.repeats, warm_up=short, seed=bench.seed)
    records: list[list[SpeedRecord]] = [[] for _ in variants]
    for done, (prompt, runs) in enumerate(zip(bench.prompts, timings, strict=True)):
        answers: list[list[Answer]] = [[] for _ in arms]
        for count, run in enumerate(runs, 1):
            answers[run.arm] += run.output
            bench.on_progress((done + count / (len(arms) * bench.repeats)) / len(bench.prompts))
        plain, *others = (_median(of_one_arm) for of_one_arm in answers)
        for of_variant, variant, answer in zip(records, variants, others, strict=True):
            is_greedy = not prompt.generation_kwargs["do_sample"]
            of_variant.append(
                paired_record(
                    variant.arm.name, answer, plain, bench.target, prompt.ids, is_greedy, latencies=bench.latencies
                )
            )
    return [variant.label | summarise(found) for variant, found in zip(variants, records, strict=True)]


def _median(answers: list[Answer]) -> Answer:
    return sorted(answers, key=lambda answer: answer.seconds)[(len(answers) - 1) // 2]
