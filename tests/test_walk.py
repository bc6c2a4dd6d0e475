"""The walk over every command: it covers them all, and its checks can fail."""

from pathlib import Path

import pytest
from typer.main import get_command

from hf_failfast.cli.app import app
from tools.walk import Outcome, Step, faults, run, steps

WORDS = ("generate", "--chunk-length", "0")


def test_every_command_is_walked(tmp_path: Path) -> None:
    """Each command's help is asked for; most are run, and most have a mistake that is named."""
    walked = steps(tmp_path)
    names = set(get_command(app).commands)
    assert {step.words[0] for step in walked if "--help" in step.words} >= names
    assert {step.words[0] for step in walked if step.status} >= {"generate", "train", "bench", "push", "inspect"}
    assert len({step.sentence for step in walked if step.status}) > 20


@pytest.mark.parametrize(
    ("outcome", "fault"),
    [
        (Outcome(0.5, 2, "it must be 1", False), None),
        (Outcome(2.0, 2, "it must be 1", False), "the first output after 2.0 s"),
        (Outcome(None, 2, "it must be 1", False), "the first output after None s"),
        (Outcome(0.5, 1, "it must be 1", False), "exit status 1, not 2"),
        (Outcome(0.5, 2, "wrong", False), "without 'must be 1'"),
        (Outcome(0.5, 2, "it must be 1 Traceback", False), "a traceback"),
        (Outcome(0.5, 2, "it must be 1", True), "torch was imported"),
    ],
)
def test_a_fault_is_found(outcome: Outcome, fault: str | None) -> None:
    found = faults(Step(WORDS, 2, "must be 1"), outcome, 1.5)
    assert [each.startswith(str(fault)) for each in found] == [True] * (fault is not None)


def test_a_command_is_watched() -> None:
    """Status, sentence and imports of a process of its own; a package that is hidden counts as missing."""
    outcome = run(Step(("experiment", "tau"), 1, hides=("matplotlib",)))
    assert outcome.status == 1 and 'pip install "hf_failfast[plots]"' in outcome.output
    assert outcome.first is not None and not outcome.imported_torch
    assert faults(Step(("experiment", "tau"), 1), outcome, seconds=60) == []


@pytest.mark.parametrize("hidden", ["typer", "rich"])
def test_an_installation_without_extras_names_the_one_of_the_commands(hidden: str) -> None:
    """One line, no traceback, where not even the command's own library is there."""
    outcome = run(Step(("--help",), 1, hides=(hidden,)))
    assert outcome.status == 1 and not outcome.imported_torch
    assert outcome.output.startswith(f'hf-failfast: This needs {hidden}: pip install "hf_failfast[demo]"')
    assert "Traceback" not in outcome.output
