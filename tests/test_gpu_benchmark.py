"""The GPU benchmark's own code, with tiny shapes: it must not fail for the first time where GPU time is spent."""

import json
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY


def test_cpu_check(tmp_path: Path) -> None:
    """A section would fail, or find that drafting changes the text."""
    command = [sys.executable, "benchmarks/gpu.py", "--cpu-check", "--output", str(tmp_path / "result.json")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "result.json").read_text()) == report
    assert not [name for name, found in report.items() if isinstance(found, dict) and "error" in found], report
    generations = report["generations"]
    assert generations.pop("captures in a second call") == 0
    assert {value for value in generations.values() if isinstance(value, bool)} == {True}
    assert report["7B"]["rounds at 6.55 tokens"]["captured"]["over_plain, 1 passes"] > 0


def test_the_budget(tmp_path: Path) -> None:
    """A run would take longer than the time it was given, or a section be missing without a word."""
    command = [sys.executable, "benchmarks/gpu.py", "--cpu-check", "--budget-seconds", "0"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
    report = json.loads(result.stdout.splitlines()[-1])
    assert {"machine", "kernels", "generations", "1.5B", "7B"} <= report.keys()
    assert all("skipped" in report[name] for name in ("machine", "kernels", "generations", "1.5B", "7B"))
