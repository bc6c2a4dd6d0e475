"""Progress is for people at a terminal, and never on stdout."""

from typing import Any

import pytest
from rich.console import Console

from hf_failfast.cli.output import progress


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_sees_it(is_terminal: bool, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "Console", lambda **options: Console(**options, force_terminal=is_terminal))
    with progress.progress_bar() as on_progress:
        on_progress("Timing", 0.5)
    with progress.waiting("Loading"):
        pass
    out, err = capsys.readouterr()
    assert not out
    if is_terminal:
        assert all(part in err for part in ("Timing", "50%", "Loading"))
    else:
        assert not err


def test_elsewhere_a_line_now_and_then(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stderr is no terminal, long work says how far it is, every `LINE_SECONDS` at most."""
    clock = iter([0.0, 10.0, 31.0, 45.0, 70.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = progress.Lines()
    for done in (1, 2, 3, 4):
        lines.show(f"Timing: {done} of 4")
    assert capsys.readouterr().err == "Timing: 2 of 4 after 31 s\nTiming: 4 of 4 after 70 s\n"
