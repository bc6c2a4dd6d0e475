"""Arms timed side by side: one process, the same inputs, random order, warm-up first."""

import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from time import perf_counter
from typing import Generic, NamedTuple, TypeVar

import torch

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
        yield _runs(arms, each, repeats, order)


def _runs(
    arms: Mapping[Arm, Callable[[Input], Output]], each: Input, repeats: int, order: random.Random
) -> Iterator[Run[Arm, Output]]:
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
