"""Answers timed side by side: one process, the same prompts, random order, warm-up first."""

import random
import resource
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from transformers import PreTrainedModel

from .exact_stops import NewCriterion
from .records import SpeedRecord, paired

# Of an answer that is not measured: a process's first calls pay for what later ones find done.
WARM_UP_TOKENS = 16

Arm = TypeVar("Arm", bound=Hashable)
Input = TypeVar("Input")
Output = TypeVar("Output")


class Run(NamedTuple, Generic[Arm, Output]):
    """One call of an arm. seconds: wall clock, until the device is done."""

    arm: Arm
    output: Output
    seconds: float


def side_by_side(
    arms: Mapping[Arm, Callable[[Input], Output]],
    inputs: Iterable[Input],
    repeats: int,
    warm_up: Input,
    seed: int = 0,
) -> Iterator[Iterator[Run[Arm, Output]]]:
    """The runs of each input in turn: every arm `repeats` times, all arms of a repeat in random order.

    A run is made when it is asked for, so an input's runs must be used up before the next input's. First every arm is
    called on `warm_up`, untimed.
    """
    order = random.Random(seed)
    for arm in arms.values():
        arm(warm_up)
    for each in inputs:
        yield in_random_order(arms, each, repeats, order)


def in_random_order(
    arms: Mapping[Arm, Callable[[Input], Output]], each: Input, repeats: int, order: random.Random
) -> Iterator[Run[Arm, Output]]:
    """The runs of one input, each made when it is asked for."""
    for _ in range(repeats):
        for name in order.sample(list(arms), len(arms)):
            started = _now()
            output = arms[name](each)
            yield Run(name, output, _now() - started)


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()


def seconds_by_arm(runs: Iterable[Run[Arm, Output]]) -> dict[Arm, list[float]]:
    """Every arm's seconds, one per repeat: entry i of two arms was timed side by side."""
    seconds: dict[Arm, list[float]] = {}
    for run in runs:
        seconds.setdefault(run.arm, []).append(run.seconds)
    return seconds


class Stopwatch:
    """Wall clock and peak memory from here on."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # Linux: the process's largest size counts from here on
                Path("/proc/self/clear_refs").write_text("5")
        self.started = _now()

    def read(self) -> tuple[float, float]:
        """(seconds until the device is done, MiB at most); which memory is counted: see `SpeedRecord`."""
        seconds = _now() - self.started
        if self.is_cuda:
            return seconds, torch.cuda.max_memory_allocated() / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
        return seconds, peak / (2**20 if sys.platform == "darwin" else 2**10)


@dataclass(frozen=True)
class Prompts:
    """A batch as lm-eval prepares it, left-padded.

    stop: what makes the criterion of stop strings; None for answers that end with an end-of-sequence id only.
    generation_kwargs: further arguments of `generate`, such as those of sampling.
    """

    ids: torch.Tensor  # (batch, n)
    attention_mask: torch.Tensor  # (batch, n)
    max_length: int
    stop: NewCriterion | None
    generation_kwargs: dict[str, Any]

    @classmethod
    def greedy(cls, ids: torch.Tensor, max_new_tokens: int) -> "Prompts":
        """Prompts (batch, n) of equal length, without stop strings."""
        return cls(ids, torch.ones_like(ids), ids.shape[1] + max_new_tokens, None, {"do_sample": False})

    @property
    def is_greedy(self) -> bool:
        return not self.generation_kwargs.get("do_sample")

    def up_to(self, max_new_tokens: int) -> "Prompts":
        """The same, for answers of at most that many tokens."""
        return replace(self, max_length=min(self.max_length, self.ids.shape[1] + max_new_tokens))

    def row(self, index: int) -> "Prompts":
        """One prompt alone, without its padding."""
        ids = self.ids[index : index + 1, self.attention_mask[index].bool()]
        max_length = self.max_length - self.ids.shape[1] + ids.shape[1]
        return replace(self, ids=ids, attention_mask=torch.ones_like(ids), max_length=max_length)


def time_answers(
    arms: Mapping[Arm, Callable[[Prompts], list[SpeedRecord]]],
    target: PreTrainedModel,
    prompts: Sequence[Prompts],  # of one row each
    repeats: int = 1,
    seed: int = 0,
    on_progress: Callable[[float], None] = lambda done: None,
) -> dict[Arm, list[SpeedRecord]]:
    """Every arm's records, one per prompt, each beside that of the first arm, which is plain decoding.

    A record is that of the run of median time, of an even number the faster of the two in the middle.
    on_progress: told the share of the runs that are done, 0..1.
    """
    records: dict[Arm, list[SpeedRecord]] = {arm: [] for arm in arms}
    timings = side_by_side(arms, prompts, repeats, prompts[0].up_to(WARM_UP_TOKENS), seed)
    for done, (prompt, runs) in enumerate(zip(prompts, timings, strict=True)):
        found: dict[Arm, list[SpeedRecord]] = {arm: [] for arm in arms}
        for count, run in enumerate(runs, 1):
            found[run.arm] += run.output
            on_progress((done + count / (len(arms) * repeats)) / len(prompts))
        medians = {arm: sorted(each, key=lambda record: record.seconds) for arm, each in found.items()}
        plain, *_ = of_median_time = [each[(repeats - 1) // 2] for each in medians.values()]
        for arm, record in zip(arms, of_median_time, strict=True):
            records[arm].append(paired(record, plain, target, prompt.ids, prompt.is_greedy))
    return records
