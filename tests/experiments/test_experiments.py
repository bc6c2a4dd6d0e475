"""The catalogue, the experiments' arithmetic, and each of them on models of two layers."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import REPOSITORY
from typer.main import get_command
from typer.testing import CliRunner

pytest.importorskip("lm_eval")

from eval_support import save_models

from hf_failfast.cli.app import app
from hf_failfast.eval import task_prompts
from hf_failfast.experiments import catalogue, plots, tables
from hf_failfast.experiments.catalogue.confidence import calibration_error, histogram
from hf_failfast.experiments.catalogue.difficulty import run_lengths
from hf_failfast.experiments.on_gpu import H200, MODELLED, speedup
from hf_failfast.experiments.tables import SPEED, cells
from hf_failfast.measure.tracing import TracedRound
from tools.tables import experiments

STACKS = ["lookup", "lookup > drafter", "drafter > assistant", "lookup > drafter > assistant"]
STORED = sorted((REPOSITORY / "results" / "experiments").glob("*.json"))


def test_every_stored_result_is_of_an_experiment() -> None:
    """The catalogue and results/experiments hold the same names."""
    assert catalogue.names() == [path.stem for path in STORED]


@pytest.mark.parametrize("name", catalogue.names())
def test_an_experiment_fits_its_stored_result(name: str, tmp_path: Path) -> None:
    """Its stored options are those of the result's command, every column has a number, the figure is drawn."""
    found = catalogue.load(name)
    document = tables.read(REPOSITORY / "results" / "experiments" / f"{name}.json")
    command = get_command(app).commands["experiment"]
    was_asked = document["command"].partition(" experiment ")[2].split()
    asked = [name, *was_asked[1:3], *found.stored.split()]
    assert command.make_context("", asked).params == command.make_context("", was_asked).params
    assert all(any(column.cell(row) for row in document["rows"]) for column in found.columns)
    plots.save_plot(found.plot, document, tmp_path / "figure.svg")


def test_names_are_known_without_loading_an_experiment() -> None:
    """The command's help lists the experiments and imports none of them, and no lm-eval."""
    code = """if True:
        import sys
        from hf_failfast.cli.app import app
        app(["experiment", "--help"], standalone_mode=False)
        print(*sys.modules)
    """
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"lm_eval", "matplotlib", "hf_failfast.experiments.catalogue.tau"} & set(output.split())


def test_histogram_counts_every_judged_token_once() -> None:
    """Bins hold their lower end, the last one both; an empty bin has no share."""
    judged = [(0.0, False), (0.05, True), (0.95, True), (1.0, True), (1.0, False)]
    rows = histogram(judged)
    assert [(row["tokens"], row["accepted"]) for row in rows] == [(2, 1), *[(0, 0)] * 8, (3, 2)]
    assert rows[-1]["mean_confidence"] == pytest.approx(2.95 / 3)
    assert rows[4]["accepted_share"] is None


def test_calibration_error_by_hand() -> None:
    """(0.25 + 0.25) / 2 for ten tokens at 0.75, five of them right, and ten wrong ones at 0.25; else 0."""
    judged = [(0.75, index < 5) for index in range(10)] + [(0.25, False)] * 10
    assert calibration_error(histogram(judged)) == pytest.approx(0.25)
    calibrated = [(0.75, index < 75) for index in range(100)]
    assert calibration_error(histogram(calibrated)) == pytest.approx(0)
    assert calibration_error(histogram([])) == 0


def traced(drafted: int, accepted: int, emitted: int) -> TracedRound:
    return TracedRound([1] * drafted, [0.5] * drafted, accepted, [1] * emitted, [0.5] * emitted, 1, 0.0, 0.0)


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ([(4, 2, 3), (4, 3, 4)], [2, 3]),  # refused each time
        ([(4, 4, 5), (4, 1, 2)], [6]),  # the bonus token after a whole draft continues the run
        ([(4, 0, 1), (0, 0, 1)], []),  # nothing accepted, nothing drafted
        ([(2, 2, 3), (0, 0, 1), (2, 2, 2)], [3, 2]),  # a round without a draft ends a run, the end of the text too
        ([(4, 3, 3)], [3]),  # the text ended inside the draft
    ],
)
def test_runs_of_right_tokens(rounds: list[tuple[int, int, int]], expected: list[int]) -> None:
    """Rounds of (drafted, accepted, emitted) tokens give these lengths of runs."""
    assert run_lengths([traced(*counts) for counts in rounds]) == expected


def test_cells_are_formatted_and_unknown_ones_empty() -> None:
    """A speedup shows its interval if that is known; a number that the row lacks is an empty cell."""
    row = {"speedup": 1.234, "speedup_ci95_low": 1.0, "speedup_ci95_high": 1.5, "acceptance_rate": 0.256}
    assert cells(SPEED, [row]) == [["1.23 (1.00 to 1.50)", "", "", "26%", ""]]
    alone = {"speedup": 1.2, "speedup_ci95_low": "N/A", "speedup_ci95_high": "N/A"}
    assert cells(SPEED, [alone])[0][0] == "1.20"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def run(name: str, folders: dict[str, str], out: Path, *options: object, command: typer.Typer = app):
    arguments = [
        "experiment", name, "--out", out, "--target", folders["target"], "--drafter", folders["drafter"],
        "--dtype", "float32", "--tasks", "failfast_arithmetic", "--limit", 2, "--max-new-tokens", 12, *options,
    ]  # fmt: skip
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("name", "options", "axis", "values"),
    [
        ("baselines", ("--values", "2,5"), "n", [2, 2, 5, 5, 12]),
        ("tau", ("--values", "0.1,0.9"), "confidence_threshold", [0.1, 0.9]),
        ("chunk-length", ("--values", "3,20"), "chunk_length", [3, 20]),
        ("max-draft-length", ("--values", "4,8"), "max_draft_length", [4, 8]),
        ("denoising-steps", (), "denoising_steps", [1, 2, 4]),
        ("specdiff", ("--values", "1,3"), "gamma", [1, 3, 3]),
        ("long-outputs", ("--values", "20,30"), "output_tokens", [20, 30]),
    ],
)
def test_sweeps(name: str, options: tuple, axis: str, values: list[float], folders: dict[str, str], tmp_path: Path):
    """Rows in the axis's order, all lossless in float32, with the facts a reader needs."""
    result = run(name, folders, tmp_path, *options)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / f"{name}.json").read_text())
    rows = document["rows"]
    assert [row[axis] for row in rows] == values
    assert all(row["identical"] == 1 and row["answers"] == 2 and row["speedup"] > 0 for row in rows)
    assert {"command", "commit", "versions", "hardware", "setting", "totals"} <= set(document)
    assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
    if name == "long-outputs":
        assert [row["new_tokens"] for row in rows] == values
    if name == "denoising-steps":
        assert [row["drafter_passes_per_round"] > 1 for row in rows] == [False, True, True]
    if name == "baselines":
        autoregressive = [row for row in rows if row["drafter"] == "autoregressive"]
        assert [row["drafter_passes_per_round"] for row in autoregressive] == pytest.approx([2, 5], rel=0.4), (
            "one pass per drafted token"
        )


@pytest.mark.parametrize(
    ("name", "options", "axis", "values"),
    [
        ("tree", ("--values", "0,8"), "draft_tree", [0, 8]),
        ("lookup", ("--values", "0,4"), "n", [0, 4, None]),
        ("reuse", ("--values", "0"), "reuse", ["no", "yes"]),
        ("self-selection", ("--values", "1,2"), "drafts", [1, 2]),
        ("overlap", ("--values", "2"), "overlap", ["no", "yes"]),
        ("diffuspec", (), "method", ["FailFast", "fixed, 12 tokens", "lengths", "lengths, paths"]),
        ("hierarchy", (), "method", ["drafter", "drafter, tail of 8", "transformers' prompt lookup", *STACKS[:2]]),
    ],
)
def test_strategies(name: str, options: tuple, axis: str, values: list, folders: dict[str, str], tmp_path: Path):
    """Each strategy beside the chain: the same texts, and counts that do not depend on the clock."""
    documents = []
    for part in ("one", "other"):
        result = run(name, folders, tmp_path / part, *options)
        assert result.exit_code == 0, result.output
        documents.append(json.loads((tmp_path / part / f"{name}.json").read_text()))
    rows = documents[0]["rows"]
    assert [row[axis] for row in rows] == values
    assert all(row["identical"] == 1 and row["answers"] == 2 for row in rows)
    if name != "hierarchy":  # whose levels are chosen by measured times
        for row, again in zip(rows, documents[1]["rows"], strict=True):
            assert all(row.get(key) == again.get(key) for key in ("acceptance_rate", "mean_acceptance_length"))
    assert (tmp_path / "one" / f"{name}.svg").read_text().startswith("<?xml")


def test_a_hierarchy_with_an_assistant(folders: dict[str, str], tmp_path: Path) -> None:
    """An assistant is the last level of two more stacks."""
    result = run("hierarchy", folders, tmp_path, "--assistant", folders["assistant"])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "hierarchy.json").read_text())["rows"]
    assert [row["method"] for row in rows][3:] == STACKS
    assert all(row["identical"] == 1 for row in rows)


def test_costs_on_a_gpu_are_those_measured() -> None:
    """The modelled costs are the stored measurement; a plain round is worth one, and a free token two."""
    measured = tables.read(REPOSITORY / "results" / "gpu-nvidia-h200.json")
    for kind, costs in H200.items():
        for points, passes in ((costs.target, measured["7B"]["passes"]), (costs.drafter, measured["1.5B"])):
            expected = [(count, passes[f"{count} rows"][f"{kind}_ms"]) for count in (1, 16, 32, 64)]
            assert points == tuple((count, pytest.approx(ms, abs=1e-5)) for count, ms in expected)
        assert speedup(costs, 1.0, 0.0, 0.0) == 1
        assert 1.9 < speedup(costs, 2.0, 1.0, 0.0) < 2
        by_hand = 3 * costs.target[0][1] / (costs.target[2][1] + 2 * costs.drafter[1][1])
        assert speedup(costs, 3.0, 31.0, 2.0) == pytest.approx(by_hand)
    row = {"mean_acceptance_length": 3.0, "acceptance_rate": 2 / 31, "drafter_passes_per_round": 2.0}
    assert [column.cell(row) for column in MODELLED] == [
        f"{speedup(H200[c.key], 3.0, 31.0, 2.0):.2f}" for c in MODELLED
    ]
    assert all(column.cell({}) == "" for column in MODELLED)


def test_sampled_answers_are_not_compared_token_by_token(folders: dict[str, str], tmp_path: Path) -> None:
    """With a temperature rows have speedups but no `identical`, and the setting names the temperature."""
    specdiff = run("specdiff", folders, tmp_path, "--values", "3", "--temperature", 0.8)
    assert specdiff.exit_code == 0, specdiff.output
    result = run("tau", folders, tmp_path, "--values", "0.5", "--temperature", 0.8, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout.strip().splitlines()[-1])
    assert "identical" not in document["rows"][0] and document["rows"][0]["speedup"] > 0
    assert document["setting"]["temperature"] == 0.8


def test_traced_experiments(folders: dict[str, str], tmp_path: Path) -> None:
    """The three analyses of the same traces agree on the tokens they count."""
    documents = {}
    for name in ("confidence", "difficulty", "trajectory"):
        result = run(name, folders, tmp_path, "--json")
        assert result.exit_code == 0, result.output
        documents[name] = json.loads(result.stdout.strip().splitlines()[-1])
    rounds = documents["trajectory"]["rows"]
    assert {row["prompt"] for row in rounds} == {0, 1}
    judged = documents["confidence"]["totals"]["judged"]
    assert judged == sum(row["tokens"] for row in documents["confidence"]["rows"])
    assert documents["confidence"]["totals"]["accepted"] == sum(row["accepted"] for row in rounds)
    shares = [row["share"] for row in documents["difficulty"]["rows"]]
    assert 0 < shares[0] <= 1 and shares == sorted(shares, reverse=True)


def test_a_plot_is_drawn_again_from_the_document(folders: dict[str, str], tmp_path: Path) -> None:
    """`--plot-only` draws the same bytes each time, and says what to do where there is no document."""
    missing = run("tau", folders, tmp_path, "--plot-only")
    assert missing.exit_code == 1 and "run the experiment without --plot-only first" in missing.output
    assert run("tau", folders, tmp_path, "--values", "0.5", "--no-plot").exit_code == 0
    assert not (tmp_path / "tau.svg").exists()
    drawn = [run("tau", folders, tmp_path, "--plot-only") and (tmp_path / "tau.svg").read_bytes() for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_an_experiment_is_one_new_file(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the file of docs/extending.md the command has the experiment, its document, table and figure."""
    page = (REPOSITORY / "docs" / "extending.md").read_text().partition("## An experiment\n")[2]
    (tmp_path / "draft_temperature.py").write_text(page.partition("```python\n")[2].partition("```\n")[0])
    monkeypatch.setattr(catalogue, "__path__", [*catalogue.__path__, str(tmp_path)])
    command = typer.Typer()
    command.callback()(lambda: None)
    command.command()(importlib.reload(sys.modules["hf_failfast.cli.experiment"]).experiment)
    result = run("draft-temperature", folders, tmp_path, "--temperature", 0.8, command=command)
    assert result.exit_code == 0, result.output
    assert "temperature" in result.output and "speedup" in result.output
    document = json.loads((tmp_path / "draft-temperature.json").read_text())
    assert document["experiment"] == "draft-temperature"
    assert [row["draft_temperature"] for row in document["rows"]] == [0.5, 1.0]
    assert all(row["answers"] == 2 and row["speedup"] > 0 for row in document["rows"])
    assert (tmp_path / "draft-temperature.svg").read_text().startswith("<?xml")
    line = "| `draft-temperature` | How warm should the drafts be that rejection sampling judges? |"
    assert f"{line} draft temperature: 0.5, 1.0 |" in experiments.table()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--confidence-threshold", 2), "`confidence_threshold` must be a number in [0, 1]"),
        (("--target-latency-ms", 5), "must be given together"),
        (("--temperature", -1), "`temperature` must be a number >= 0"),
        (("--prompts", "no-such-file"), "there is none at 'no-such-file'"),
        (("--values", "a"), "not a list of numbers"),
    ],
)
def test_bad_options_are_named_before_loading(options: tuple, message: str, tmp_path: Path) -> None:
    """Names the bad option, not the folders that do not exist."""
    result = run("tau", {"target": "no-such-folder", "drafter": "none"}, tmp_path, *options)
    assert result.exit_code != 0
    assert message in " ".join(result.output.replace("│", " ").split())


def test_an_unknown_task_is_named(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown task ends the command with one line and code 1."""

    def without_stock_tasks(**options: object) -> task_prompts.TaskManager:  # reading them takes half a minute
        return TaskManager(**options | {"include_defaults": False})

    TaskManager = task_prompts.TaskManager
    monkeypatch.setattr(task_prompts, "TaskManager", without_stock_tasks)
    result = run("tau", folders, tmp_path, "--tasks", "no_such_task")
    assert result.exit_code == 1 and "Unknown tasks ['no_such_task']" in result.output


def test_a_missing_matplotlib_is_named_before_loading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Says what to install, not that the folders do not exist."""
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    result = run("tau", {"target": "no-such-folder", "drafter": "none"}, tmp_path)
    assert result.exit_code == 1 and 'pip install "hf_failfast[plots]"' in result.output
