"""Calls that hypothesis chooses, families and limits among their parts, equal plain `generate`'s.

A failing call is printed as a program, `check(call=Call(...))`. It goes into `FOUND`, with what has to become of it.
"""

import os
import secrets
import time
from collections.abc import Iterable
from itertools import count, takewhile

import pytest
from generated_calls import Call, calls
from generated_comparison import compare, outcomes
from generated_families import INSTALLED
from hypothesis import HealthCheck, given, seed, settings

# Calls that were wrong once, and how they end now.
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
    "hidden tokens that are counted as places": ("refused", Call(family="bart", padding="holes")),
    "hidden tokens between counted distances": ("refused", Call(family="roformer", padding="holes")),
    "hidden tokens that the mask takes out": ("equal", Call(family="bloom", padding="holes")),
    "a static cache without slots": ("refused", Call(family="lfm2", cache="plain, static")),
}

# `.ci/matrix` divides them among its runs.
MINUTES = float(os.environ.get("GENERATED_MINUTES", "20"))
# The simplest call, and one that the seed chooses: of more, hypothesis makes most by varying the second.
PAIR = settings(max_examples=2, derandomize=False, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", FOUND)
def test_calls_that_once_differed(name: str) -> None:
    """Every call that was found to be wrong is equal to plain `generate`'s, or refused by name."""
    outcome, call = FOUND[name]
    if call.family not in INSTALLED:
        pytest.skip("this transformers has no such family")
    outcomes.clear()
    compare(call)
    assert outcomes[outcome] > 0


def check(call: Call) -> None:
    if call != Call():
        compare(call)


def try_calls(seeds: Iterable[int]) -> None:
    """Compares one call of each seed; most are compared to their end, drafts are accepted and forwards captured."""
    outcomes.clear()
    for number in seeds:
        seed(number)(PAIR(given(call=calls())(check)))()
    ended = {name: outcomes[name] for name in ("equal", "refused", "tied", "ended beside a table")}
    assert ended["equal"] > 0.6 * sum(ended.values()), ended
    assert ended["tied"] < 0.02 * sum(ended.values()), ended
    assert outcomes["accepted"] > 0.5 * ended["equal"], outcomes
    assert outcomes["captured"] > 0, outcomes


def test_a_sample() -> None:
    """The same few calls in every run."""
    try_calls(range(60))


@pytest.mark.exhaustive
def test_new_calls() -> None:
    """New calls in every run, for some minutes."""
    end = time.monotonic() + 60 * MINUTES
    try_calls(takewhile(lambda _: time.monotonic() < end, count(secrets.randbits(32))))
