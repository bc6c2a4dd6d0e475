"""`hf-failfast calibrate`: the search, and the command on models of two layers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("lm_eval")

from eval_support import save_models

from hf_failfast import FailFastConfig, load_drafter
from hf_failfast.cli.app import app
from hf_failfast.experiments import calibration
from hf_failfast.experiments.base import Setup
from hf_failfast.experiments.calibration import Calibration, calibrate
from hf_failfast.experiments.sweeps import Variant
from hf_failfast.measure.records import SpeedRecord

START = FailFastConfig(0.45, 10, 60)


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Calibration, list[FailFastConfig]]]:
    """Runs the search where `speed` gives a setting's speedup; returns what it found and measured, in order."""

    def search(speed: Callable[[FailFastConfig], float], **options: Any) -> tuple[Calibration, list[FailFastConfig]]:
        asked: list[FailFastConfig] = []

        def timed(setup: Setup, variants: Sequence[Variant]) -> list[dict[str, Any]]:
            configs = [variant.method.arguments["failfast_config"] for variant in variants]
            asked.extend(configs)
            return [
                variant.label | {"speedup": speed(config)} for variant, config in zip(variants, configs, strict=True)
            ]

        monkeypatch.setattr(calibration, "timed", timed)
        setup = Setup(None, None, None, START, [None])
        return calibrate(setup, **({"tolerance": 0.03} | options)), asked

    return search


def test_it_finds_the_best_of_a_machine_with_one_optimum(search: Any) -> None:
    """Finds the optimum although N and tau depend on each other, and measures no setting twice."""

    def speed(config: FailFastConfig) -> float:
        best_tau = 0.75 if config.chunk_length == 4 else 0.3
        return (
            2
            - abs(config.confidence_threshold - best_tau) / 10
            - abs(config.chunk_length - 4) / 10
            - abs(config.max_draft_length - 16) / 100
        )

    found, asked = search(speed)
    assert found.best == FailFastConfig(0.75, 4, 16)
    assert len(asked) == len(set(asked)), "a setting was measured twice"
    assert [row["speedup"] for row in found.rows] == sorted((row["speedup"] for row in found.rows), reverse=True)


def test_the_plateau_is_what_is_as_good(search: Any) -> None:
    """The plateau holds the settings within the tolerance; where none is faster, the start stays."""
    found, _ = search(lambda config: 1.5 if config.confidence_threshold > 0.5 else 1.0)
    assert {row["confidence_threshold"] for row in found.plateau} == {0.6, 0.75, 0.9}
    everything, asked = search(lambda config: 1.0, tolerance=0)
    assert len(everything.plateau) == len(asked)
    assert everything.best == START, "nothing is faster: nothing changes"


def test_a_cap_is_never_below_its_chunk(search: Any) -> None:
    """Every setting measured has N_max >= N."""
    _, asked = search(lambda config: config.chunk_length)
    assert all(config.max_draft_length >= config.chunk_length for config in asked)


def test_a_bad_tolerance_is_named() -> None:
    """Rejects a tolerance outside [0, 1) by name."""
    with pytest.raises(ValueError, match=r"`tolerance` must be in \[0, 1\), but is 1"):
        calibrate(Setup(None, None, None, START, []), tolerance=1)


def test_the_command_chooses_confirms_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--save` writes the best setting into the drafter's config, `--json` prints it, the tables name it."""
    folders = save_models(tmp_path)
    grid = {"confidence_threshold": (0.4,), "chunk_length": (4, 8), "max_draft_length": (8,)}
    monkeypatch.setattr(calibration, "GRID", grid)
    arguments = [
        "calibrate", "--target", folders["target"], "--drafter", folders["drafter"], "--dtype", "float32",
        "--tasks", "failfast_arithmetic", "--limit", "1", "--max-new-tokens", "12",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [*arguments, "--save", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout.strip().splitlines()[-1])
    best = FailFastConfig(**document["best"])
    assert best == load_drafter(folders["drafter"]).config
    assert best in {replace(START, **{name: row[name] for name in document["best"]}) for row in document["rows"]}
    assert document["rows"][0] in document["plateau"]
    assert all(row["identical"] == 1 for row in [*document["rows"], *document["held_out"]])
    assert document["held_out"][0]["chunk_length"] == best.chunk_length
    printed = CliRunner().invoke(app, arguments)
    assert "within 3% of the best" in printed.output and "FailFastConfig(confidence_threshold=" in printed.output
    assert "the start" in printed.output and "Keep what you have" in printed.output  # one prompt shows no gain


def test_saving_needs_a_folder() -> None:
    """`--save` without a drafter's folder ends with one line and code 1."""
    result = CliRunner().invoke(app, ["calibrate", "--save"])
    assert result.exit_code == 1 and "`--save` needs `--drafter`" in result.output


def record(seconds: float) -> SpeedRecord:
    return SpeedRecord("failfast", seconds, 10, 0.0, plain_seconds=2.0, plain_tokens=10)


@pytest.mark.parametrize(
    ("fastest", "start", "is_faster"),
    [
        ([1.0, 1.1, 0.9, 1.0], [1.2, 1.3, 1.1, 1.2], True),
        ([1.0, 1.3, 0.9, 1.2], [1.2, 1.1, 1.1, 1.0], False),
        ([1.3, 1.3, 1.3, 1.3], [1.0, 1.0, 1.0, 1.0], False),
        ([1.0], [1.5], False),
    ],
    ids=["faster", "within noise", "slower", "one prompt"],
)
def test_only_a_gain_beyond_noise_is_recommended(
    fastest: list[float], start: list[float], is_faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest of the search is recommended only if it is faster than the start on other prompts, paired."""
    times = {"the fastest": fastest, "the start": start}

    def answered(setup: Setup, variants: Sequence[Variant]) -> list[list[SpeedRecord]]:
        return [[record(seconds) for seconds in times[variant.label["setting"]]] for variant in variants]

    monkeypatch.setattr(calibration, "answered", answered)
    chosen = FailFastConfig(0.6, 4, 16)
    found = calibration.confirm(Setup(None, None, None, START, []), chosen)
    assert found.is_faster is is_faster
    assert found.recommended == (chosen if is_faster else START)
    assert found.rows[0]["setting"] == ("the fastest" if is_faster else "the start")
    assert found.over_start.speedup == pytest.approx(sum(start) / sum(fastest))
    same = calibration.confirm(Setup(None, None, None, START, []), START)
    assert same.over_start is None and same.recommended == START and len(same.rows) == 1
