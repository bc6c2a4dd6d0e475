"""Progress of training where stderr is no terminal, and totals that are right."""

from pathlib import Path
from typing import Any

import pytest
from training_support import talkative_target, tiny_tokenizer

from hf_failfast.training import progress
from hf_failfast.training.config import DataConfig
from hf_failfast.training.data import synthesis
from hf_failfast.training.progress import Progress


def test_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """One line per `LINE_SECONDS` at most, with the count, the total and the status; nothing for quick work."""
    clock = iter([0.0, 5.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress(100, 10, "step") as bar:
        for _ in range(4):
            bar.advance(1, {"left": "2.0min"})
    assert capsys.readouterr().err.splitlines() == [
        "step 12 of 100 after 31 s, left 2.0min",
        "step 14 of 100 after 62 s, left 2.0min",
    ]
    clock = iter([0.0, 99.0])
    with Progress(100, 0, "step", is_shown=False) as bar:
        bar.advance(1)
    assert not capsys.readouterr().err


def test_the_total_of_a_source_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of three prompts is three prompts of work, whatever may be asked of the target's own questions."""
    source = tmp_path / "prompts.txt"
    source.write_text("one\ntwo\nthree\n")
    seen: list[tuple[int | None, int]] = []

    class Recorded(Progress):
        def __exit__(self, *given: object) -> None:
            seen.append((self.total, self.done))

    monkeypatch.setattr(synthesis, "Progress", Recorded)
    config = DataConfig(source=str(source), answer_tokens=4)
    synthesis.synthesise(talkative_target(), tiny_tokenizer(), config, tmp_path / "data", "tiny")
    assert seen == [(3, 3)]
