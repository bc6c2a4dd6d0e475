"""The GPU benchmark's own code, with tiny shapes, so that it does not fail for the first time on a GPU."""

import json
from pathlib import Path
from typing import Any

import gpu
import pytest


def report(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    """The last line of what a run prints."""
    gpu.main(**{"cpu_check": True, "budget_seconds": 540.0, "output": None} | options)
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_cpu_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Every section ends without an error, and drafting changes no text."""
    found = report(capsys, output=tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == found
    assert not [name for name, section in found.items() if isinstance(section, dict) and "error" in section], found
    generations = found["generations"]
    assert generations.pop("captures in a second call") == 0
    assert {value for value in generations.values() if isinstance(value, bool)} == {True}
    assert found["7B"]["rounds at 6.55 tokens"]["captured"]["over_plain, 1 passes"] > 0


def test_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    """After the given time no section starts, and each that was left out says so."""
    found = report(capsys, budget_seconds=0.0)
    assert all("skipped" in found[name] for name in ("machine", "kernels", "generations", "1.5B", "7B"))


def test_a_failing_section(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """A section that fails leaves its error; the others keep their results."""

    def fail(machine: Any) -> None:
        raise RuntimeError("out of memory")

    for name in ("compare_generations", "measure_passes", "measure_pair"):
        monkeypatch.setattr(gpu, name, lambda *values: fail(values[0]))
    found = report(capsys)
    assert found["7B"]["error"] == found["generations"]["error"] == "RuntimeError: out of memory"
    assert "kernel_us" in found["kernels"]["most_likely, 10 rows"]
