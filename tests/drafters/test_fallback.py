"""A drafter that fails midway gives one warning and the same text, and the model stays usable."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, target
from scripted import ScriptedDrafter, ScriptedSession

NEW = 30


class Failing(ScriptedDrafter):
    """Fails by `fault` from its third round on."""

    fault: Callable[[Any], Any]

    def start_one(self, request: Any) -> ScriptedSession:
        session, rounds = super().start_one(request), []
        make_draft = session.draft

        def draft(*call: Any) -> Any:
            rounds.append(1)
            return make_draft(*call) if len(rounds) < 3 else self.fault(lambda: make_draft(*call))

        session.draft = draft  # type: ignore[method-assign]
        return session


def raising(error: BaseException) -> Callable[[Any], Any]:
    def fault(_: Any) -> Any:
        raise error

    return fault


def not_numbers(make: Callable[[], Any]) -> Any:
    draft = make()
    draft.confidence[:] = torch.nan
    return draft


FAULTS = {
    "an error": raising(KeyError("tokens")),
    "out of memory": raising(torch.OutOfMemoryError("CUDA out of memory")),
    "NaN": not_numbers,
    "a hang": lambda make: time.sleep(20),
}


def failing(fault: Any, seed: int = 0) -> Failing:
    reference = plain(target("llama"), prompt(9, seed), max_new_tokens=60)
    proposer = Failing(reference, [3, 1])
    proposer.fault = fault
    return proposer


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.0001}])
@pytest.mark.parametrize("name", FAULTS)
def test_the_rest_is_decoded_plainly(name: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """After a failure the rest is decoded plainly: same text, one error counted, one warning."""
    proposer = failing(FAULTS[name])
    timeout = {"drafter_timeout": 0.5} if name == "a hang" else {}
    with caplog.at_level(logging.WARNING, logger="hf_failfast"):
        output = failfast(
            target("llama"),
            prompt(9),
            proposer,
            max_new_tokens=NEW,
            return_dict_in_generate=True,
            **timeout,
            **options,
        )
    assert torch.equal(output.sequences, proposer.reference[:, : 9 + NEW])
    stats = output.speculation
    assert stats.drafter_errors == 1
    assert stats.as_dict()["drafter_errors"] == 1
    assert [record.drafted > 0 for record in stats.records[:2]] == [True, True]
    assert all(record.drafted == 0 for record in stats.records[3:])
    assert len([record for record in caplog.records if "The drafter failed" in record.message]) == 1


@pytest.mark.parametrize("name", FAULTS)
def test_developers_see_the_error(name: str) -> None:
    """`drafter_errors="raise"` raises the drafter's error."""
    timeout = {"drafter_timeout": 0.5} if name == "a hang" else {}
    with pytest.raises((KeyError, torch.OutOfMemoryError, ValueError, TimeoutError)):
        failfast(
            target("llama"), prompt(9), failing(FAULTS[name]), max_new_tokens=NEW, drafter_errors="raise", **timeout
        )


@pytest.mark.parametrize("options", [{"drafter_errors": "ignore"}, {"drafter_timeout": 0}])
def test_bad_options(options: dict[str, Any]) -> None:
    """Rejects unknown `drafter_errors` and a timeout of zero."""
    with pytest.raises(ValueError, match=next(iter(options))):
        failfast(target("llama"), prompt(9), drafter("canvas", "llama"), max_new_tokens=3, **options)


def test_an_interrupt_leaves_everything_usable() -> None:
    """Ctrl-C is raised, and the next call of the same drafter gives the right text."""
    with pytest.raises(KeyboardInterrupt):
        failfast(target("llama"), prompt(9), failing(raising(KeyboardInterrupt())), max_new_tokens=NEW)
    proposer = drafter("canvas_shift", "llama")
    reference = plain(target("llama"), prompt(9), max_new_tokens=NEW)
    calls = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    handle = proposer.model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        failfast(target("llama"), prompt(9), proposer, max_new_tokens=NEW)
    handle.remove()
    assert torch.equal(failfast(target("llama"), prompt(9), proposer, max_new_tokens=NEW), reference)


def test_one_drafter_in_several_threads() -> None:
    """Four threads share a drafter for two targets, and each gets its own text."""
    proposer, results = drafter("canvas_shift", "llama"), {}
    models = {name: target(name) for name in ("llama", "qwen2")}  # one vocabulary

    def answer(seed: int) -> None:
        for name, model in models.items():
            results[seed, name] = failfast(model, prompt(9, seed), proposer, max_new_tokens=NEW)

    threads = [threading.Thread(target=answer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (seed, name), output in results.items():
        assert torch.equal(output, plain(models[name], prompt(9, seed), max_new_tokens=NEW))
    assert len(results) == 8


@pytest.mark.parametrize("name", ["an error", "NaN"])
def test_goodput_of_a_drafter_that_fails(name: str) -> None:
    """With goodput, a failing drafter is counted or raised as the request asks."""
    arguments = {"length_policy": "goodput", "max_new_tokens": NEW, "return_dict_in_generate": True}
    output = failfast(target("llama"), prompt(9), failing(FAULTS[name]), **arguments)
    assert torch.equal(output.sequences, plain(target("llama"), prompt(9), max_new_tokens=NEW))
    assert output.speculation.drafter_errors == 1
    with pytest.raises((KeyError, ValueError)):
        failfast(target("llama"), prompt(9), failing(FAULTS[name]), drafter_errors="raise", **arguments)
