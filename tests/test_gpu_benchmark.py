"""The GPU benchmark runs on tiny shapes, so that its faults show before GPU time is spent."""

import json
from pathlib import Path
from typing import Any

import gpu
import pytest


def report(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    """The last line of what a run prints."""
    gpu.main(**{"sections_": None, "cpu_check": True, "budget_seconds": 540.0, "output": None} | options)
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.exhaustive
def test_cpu_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Every section runs without an error, and drafting changes no text."""
    found = report(capsys, output=tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == found
    assert not [name for name, section in found.items() if isinstance(section, dict) and "error" in section], found
    generations = found["generations"]
    assert generations.pop("captures in a second call") == 0
    assert {value for value in generations.values() if isinstance(value, bool)} == {True}
    assert found["7B"]["rounds at 6.55 tokens"]["captured"]["over_plain, 1 passes"] > 0


def test_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    """Without time left, every section is reported as skipped."""
    found = report(capsys, budget_seconds=0.0)
    assert all("skipped" in found[name] for name in ("machine", "kernels", "generations", "1.5B", "7B"))


@pytest.mark.exhaustive
def test_a_failing_section(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """A failing section is reported, and the others keep their results."""

    def fail(machine: Any) -> None:
        raise RuntimeError("out of memory")

    for name in ("compare_generations", "measure_passes", "measure_pair"):
        monkeypatch.setattr(gpu, name, lambda *values: fail(values[0]))
    found = report(capsys)
    assert found["7B"]["error"] == found["generations"]["error"] == "RuntimeError: out of memory"
    assert "kernel_us" in found["kernels"]["most_likely, 10 rows"]


def test_sections_by_name_and_group() -> None:
    """Sections are asked for by their names and those of groups, in any order; another name is refused."""
    known = dict.fromkeys(("machine", "1.5B", "7B", "smollm2", "memory"), dict)
    assert gpu.asked_for("memory,machine", known) == ["machine", "memory"]
    assert gpu.asked_for("passes, bundled", known) == ["1.5B", "7B", "smollm2"]
    with pytest.raises(ValueError, match="`--sections` must be of .* but has \\['9B'\\]"):
        gpu.asked_for("7B,9B", known)


def test_a_run_goes_on_where_it_was(capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path) -> None:
    """Each section is stored when it is there; a later run measures what failed, is new, or is of another commit."""
    calls: list[str] = []

    def section(name: str) -> Any:
        def measure() -> dict[str, Any]:
            calls.append(name)
            if name == "b" and calls.count("b") == 1:
                raise RuntimeError("out of memory")
            return {"value": len(calls)}

        return measure

    monkeypatch.setattr(gpu, "sections", lambda machine: {name: section(name) for name in "abc"})
    commits = ["one"]
    origin = gpu.provenance
    monkeypatch.setattr(gpu, "provenance", lambda device: origin(device) | {"commit": commits[-1]})
    path = tmp_path / "result.json"
    first = report(capsys, output=path, sections_="a,b")
    assert calls == ["a", "b"] and set("abc") & set(first) == {"a", "b"}
    assert first["b"]["error"] == "RuntimeError: out of memory"
    assert {"date", "commit", "package", "torch", "transformers"} == set(first["a"]["measured"])
    second = report(capsys, output=path)
    assert calls == ["a", "b", "b", "c"]
    assert second["a"] == first["a"] and second["b"]["value"] == 3
    assert json.loads(path.read_text()) == second
    report(capsys, output=path)
    assert len(calls) == 4
    third = report(capsys, output=path, sections_="a")
    assert calls[4:] == ["a"] and third["a"]["value"] == 5
    commits.append("two")
    report(capsys, output=path)
    assert calls[5:] == ["a", "b", "c"]
    late = report(capsys, output=path, sections_="a", budget_seconds=0.0)
    assert late["a"]["value"] == 6, "a run without time has thrown away a result"


def test_every_question_has_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    """Batches, quantised targets, memory and whole answers run on tiny models; what is checked there holds."""
    found = report(capsys, sections_="machine,batch,quantised,memory,bundled")
    assert not [name for name, section in found.items() if isinstance(section, dict) and "error" in section], found
    assert found["memory"]["within one percent"] is True
    assert found["smollm2"]["auto_identical"] == found["smollm2"]["captured_plain_identical"] == 1
    assert found["smollm2"]["auto_over_fastest_plain"] <= found["smollm2"]["auto_over_plain"]
    assert found["batch"]["2 sequences"]["captured"]["over_plain, 1 passes"] > 0
    assert "outlier columns" in found["quantised"]["8 bits, outliers"]["not captured"]
    assert found["quantised"]["4 bits"]["16 rows"]["captured_ms"] > 0
