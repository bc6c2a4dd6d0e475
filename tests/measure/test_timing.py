"""The timing loop that every comparison uses."""

import time
from collections.abc import Callable

from hf_failfast.measure.timing import Run, seconds_by_arm, side_by_side


def recording(calls: list[tuple[str, int]]) -> dict[str, Callable[[int], int]]:
    """Three arms that note when they are called and answer something of their own."""

    def arm(name: str, factor: int) -> Callable[[int], int]:
        def call(value: int) -> int:
            calls.append((name, value))
            return factor * value

        return call

    return {name: arm(name, factor) for factor, name in enumerate("abc", 1)}


def test_every_arm_answers_an_input_before_the_next_is_asked() -> None:
    """All arms have `repeats` runs of an input before the next input is asked, after one warm-up each."""
    calls: list[tuple[str, int]] = []
    outputs = [[(run.arm, run.output) for run in runs] for runs in side_by_side(recording(calls), [10, 20], 4, 7)]
    assert calls[:3] == [("a", 7), ("b", 7), ("c", 7)], "the warm-up"
    assert [value for _, value in calls[3:]] == [10] * 12 + [20] * 12
    for value, of_input in zip((10, 20), outputs, strict=True):
        repeats = [of_input[start : start + 3] for start in range(0, 12, 3)]
        assert all(sorted(repeat) == [("a", value), ("b", 2 * value), ("c", 3 * value)] for repeat in repeats)


def test_the_order_is_random_and_repeatable() -> None:
    """Arms run in changing order, so that none always pays for the same other one; a seed repeats it."""

    def orders(seed: int) -> list[str]:
        [runs] = side_by_side(recording([]), [1], 8, 1, seed)
        names = "".join(run.arm for run in runs)
        return [names[start : start + 3] for start in range(0, 24, 3)]

    assert len(set(orders(0))) > 2
    assert orders(0) == orders(0) != orders(1)


def test_the_seconds_are_those_of_the_arm() -> None:
    """An arm's seconds are its own call's, without what the caller does between two runs."""
    [runs] = side_by_side({"slow": lambda _: time.sleep(0.05), "fast": lambda _: None}, [None], 2, None)
    measured = []
    for run in runs:
        measured.append(run)
        time.sleep(0.02)
    seconds = seconds_by_arm(measured)
    assert min(seconds["slow"]) >= 0.05
    assert max(seconds["fast"]) < 0.02


def test_seconds_by_arm_keeps_the_repeats_in_order() -> None:
    """Entry i of two arms comes from the same repeat, whatever the order of the runs."""
    runs = [Run("a", None, 1.0), Run("b", None, 2.0), Run("b", None, 3.0), Run("a", None, 4.0)]
    assert seconds_by_arm(runs) == {"a": [1.0, 4.0], "b": [2.0, 3.0]}
