"""Calls that hypothesis chooses, families and limits among their parts, equal plain `generate`'s.

A failing call is printed as a program, `check(call=Call(...))`. It goes into `FOUND`, with what has to become of it.
"""

import os
import time

import pytest
from generated_calls import Call, calls
from generated_comparison import check, outcomes
from generated_families import INSTALLED
from hypothesis import HealthCheck, given, settings

FOUND: dict[str, tuple[str, Call]] = {
    "a replayed forward is the first of a second turn": (
        "equal",
        Call(lengths=(5, 2), max_new_tokens=2, cache="drafted, dynamic", runner="graphs"),
    ),
    "a table of positions that grows": ("equal", Call(family="xglm", lengths=(17, 33), drafter="canvas")),
    "a prompt beyond a table that grows": ("equal", Call(family="xglm", lengths=(41,), runner="graphs")),
    "no table at all": ("equal", Call(family="bloom", lengths=(33,))),
    "a window without a mask": ("refused", Call(family="moshi", lengths=(15,))),
    "a text inside of a window without a mask": ("equal", Call(family="moshi", lengths=(4,))),
    "several hidden states per layer for a drafter that reads one": (
        "refused",
        Call(family="gemma3n", lengths=(9, 17), drafter="dflash"),
    ),
    "a drafter that reads the states of shared layers": (
        "equal",
        Call(family="gemma4", lengths=(9, 17), drafter="dflash"),
    ),
    "a static cache without slots": ("refused", Call(family="lfm2", cache="plain, static")),
}

# `.ci/matrix` divides them among its runs.
MINUTES = float(os.environ.get("GENERATED_MINUTES", "20"))
ROUND = settings(max_examples=100, derandomize=False, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", FOUND)
def test_calls_that_once_differed(name: str) -> None:
    """Every call that was found to be wrong is equal to plain `generate`'s, or refused by name."""
    outcome, call = FOUND[name]
    if call.family not in INSTALLED:
        pytest.skip("this transformers has no such family")
    outcomes.clear()
    check(call)
    assert outcomes[outcome] > 0


def check_outcomes() -> None:
    """Most calls were compared to their end, and drafts were accepted in them."""
    ended = {name: outcomes[name] for name in ("equal", "refused", "tied", "ended beside a table")}
    assert ended["equal"] > 0.6 * sum(ended.values()), ended
    assert ended["tied"] < 0.02 * sum(ended.values()), ended
    assert outcomes["accepted"] > ended["equal"], outcomes


def test_a_sample() -> None:
    """The same few calls in every run."""
    outcomes.clear()
    settings(max_examples=40, suppress_health_check=list(HealthCheck))(given(calls())(check))()
    check_outcomes()


@pytest.mark.exhaustive
def test_new_calls() -> None:
    """New calls in every run, for some minutes."""
    outcomes.clear()
    end = time.monotonic() + 60 * MINUTES
    while time.monotonic() < end:
        ROUND(given(calls())(check))()
    check_outcomes()
