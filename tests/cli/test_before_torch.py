"""What a command says before torch is imported: help, versions, mistakes, and a drafter's folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

BUNDLED = "hf_failfast/assets/smollm2-135m-drafter"
# Runs a module as `python -m` does; says at the end which of the heavy packages were imported.
HEAVY = ("torch", "transformers", "lm_eval.api", "datasets", "matplotlib.pyplot")


def run(module: str, *arguments: Any, text: str = "") -> tuple[int, str, set[str]]:
    """(exit status, what was printed, the heavy packages that were imported) of a command in a process of its own."""
    command = [sys.executable, "-X", "importtime", "-m", module, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, input=text, timeout=120)
    lines = result.stderr.splitlines()
    timed = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = [line for line in lines if not line.startswith("import time:")]
    return result.returncode, " ".join("\n".join([result.stdout, *said]).split()), timed & set(HEAVY)


def test_the_reader_of_imports() -> None:
    """A module that imports torch is found to import it; else the checks below always pass."""
    assert run("torch.version")[2] == {"torch"}


@pytest.mark.parametrize(
    "arguments",
    [("--version",), ("--help",), ("generate", "--help"), ("train", "--help"), ("experiment", "--help")],
    ids=" ".join,
)
def test_help_needs_no_torch(arguments: tuple[str, ...]) -> None:
    status, said, heavy = run("hf_failfast.cli", *arguments)
    assert (status, heavy) == (0, set())
    assert said


def test_inspecting_a_folder_needs_no_torch() -> None:
    """The text and the document of a folder are read without torch and transformers."""
    status, said, heavy = run("hf_failfast.cli", "inspect", BUNDLED)
    assert (status, heavy) == (0, set())
    assert said.startswith(f"Reading {BUNDLED}") and "causal_canvas" in said
    status, said, heavy = run("hf_failfast.cli", "inspect", BUNDLED, "--json")
    assert (status, heavy) == (0, set())
    assert json.loads(said)["spec"]["shift"] == 1


def test_a_folder_without_weights_needs_no_torch(tmp_path: Path) -> None:
    """What is missing is said before anything heavy is imported."""
    (tmp_path / "config.json").write_text((REPOSITORY / BUNDLED / "config.json").read_text())
    status, said, heavy = run("hf_failfast.cli", "inspect", tmp_path)
    assert (status, heavy) == (1, set()) and "it has no weights, only a config.json" in said


PAIR = ("--target", BUNDLED, "--drafter", BUNDLED)
TRAIN = ("--target", "any/target", "--output", "any-folder")
MISTAKES: list[tuple[tuple[str, ...], int, str]] = [
    (("genrate",), 2, "No such command 'genrate'"),
    (("generate", "--prmpt", "a"), 2, "No such option: --prmpt"),
    (("train",), 2, "Missing option '--target'"),
    (("generate", "--prompt", "a", "--chunk-length", "0"), 2, "`chunk_length` must be an integer >= 1, but is 0"),
    (("generate", "--prompt", "a", "--length-policy", "godput"), 2, "'goodput', 'diffuspec'], but is 'godput'"),
    (("demo", "--confidence-threshold", "7"), 2, "`confidence_threshold` must be a number in [0, 1], but is 7.0"),
    (
        ("bench", "--chunk-length", "8", "--max-draft-length", "4"),
        2,
        "`max_draft_length` must be at least `chunk_length`, 8, but is 4",
    ),
    (("trace", "--dtype", "floaty"), 2, "'floaty' is not a torch dtype; try float32 or bfloat16"),
    (("generate", "--prompt", "a", "--device", "gpu"), 2, "'gpu' is not a device; try cpu, cuda or cuda:1"),
    (("generate", "--prompt", "a", "--max-new-tokens", "0"), 2, "Invalid value for '--max-new-tokens'"),
    (("generate", "--prompt", "a", "--temperature", "-1"), 2, "Invalid value for '--temperature'"),
    (("generate", "--prompt", "a", "--target", "/no/where", "--drafter", BUNDLED), 2, "no folder '/no/where'"),
    (("generate", "--prompt", "a", "--target", "docs", "--drafter", BUNDLED), 2, "'docs' has no config.json"),
    (("generate", "--prompt", "a", *PAIR), 2, f"'{BUNDLED}' is a drafter, not a target: pass it as --drafter"),
    (("generate", "--prompt", "a", "--target", "docs"), 1, "must be given together"),
    (("generate", "--prompts", "no-such-file"), 2, "`prompts` must name a file, but there is none at 'no-such-file'"),
    (("train", *TRAIN, "--prompts", "no.txt"), 2, "--prompts: there is no file 'no.txt'"),
    (("train", *TRAIN, "--unseen", "no.jsonl"), 2, "--unseen: there is no file 'no.jsonl'"),
    (("generate",), 2, "there is nothing to answer: give --prompt TEXT, --prompts FILE or standard input"),
    (("generate", "--prompt", "a", "--target", "no/where", "--drafter", BUNDLED), 1, "unset HF_HUB_OFFLINE"),
    (("bench", "--replay", "no-such-file"), 2, "there is no file 'no-such-file'"),
    (("calibrate", "--tolerance", "2"), 2, "Invalid value for '--tolerance'"),
    (("experiment", "nosuch"), 2, "'nosuch' is not one of 'baselines'"),
    (("experiment", "tau", "--target-latency-ms", "5"), 2, "must be given together"),
    (("experiment", "tau", "--temperature", "nan"), 2, "`temperature` must be a number >= 0, but is nan"),
    (("train", "--target", "a", "--output", "build/a", "--minutes", "0"), 2, "`minutes` must be positive, got 0.0"),
    (("train", "--target", "a", "--output", "build/a", "--canvas-length", "1"), 2, "must be at least 2, got 1"),
    (("train", "--target", BUNDLED, "--output", "build/a"), 2, "is a drafter, not a target"),
    (("train", "--target", "a", "--output", "README.md/a"), 2, "'README.md' is a file"),
    (("push", "nouser", "docs"), 2, "'nouser' is not USER/NAME"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "status", "sentence"), MISTAKES, ids=[" ".join(each[0]) for each in MISTAKES])
def test_a_mistake_is_named_before_torch_is_imported(arguments: tuple[str, ...], status: int, sentence: str) -> None:
    found, said, heavy = run("hf_failfast.cli", *arguments)
    assert (found, heavy) == (status, set()), said
    assert sentence in said
    assert "Traceback" not in said


def test_the_help_of_lm_eval_needs_no_torch() -> None:
    pytest.importorskip("lm_eval")
    status, said, heavy = run("hf_failfast.eval", "run", "--help")
    assert status == 0 and "torch" not in heavy and "--model" in said


def test_names_of_options_are_not_cut() -> None:
    """At 80 columns every option's name stands whole in the help, with its range or choices."""
    for command in ("generate", "bench", "experiment", "calibrate", "train"):
        said = run("hf_failfast.cli", command, "--help")[1]
        assert "…" not in said
        assert "--max-draft-length" in said or command in ("calibrate", "train")
    assert "--prefix" not in said and "Draft positions per pass; the block of block_causal (at least 2)." in said
    said = run("hf_failfast.cli", "generate", "--help")[1]
    for part in (
        "(a number in [0, 1])",
        "auto|float32|bfloat16",
        "['confidence', 'goodput', 'diffuspec']",
        "[default: 128; x>=1]",
    ):
        assert part in said


def test_the_public_names_are_there_outside_of_commands(tmp_path: Path) -> None:
    """Only the commands' own processes leave the names out: a program with a similar name has them all."""
    for name in ("hf_failfast_tool.py", "cli.py"):
        program = tmp_path / name
        program.write_text(
            "import hf_failfast\nprint(all(hasattr(hf_failfast, name) for name in hf_failfast.__all__))"
        )
        command = [sys.executable, str(program), "-m", "hf_failfast.cli"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
        assert result.stdout.strip() == "True", result.stderr


@pytest.mark.parametrize("name", ["hf-failfast", "hf-failfast-eval"])
def test_a_command_finds_the_public_names_when_asked(tmp_path: Path, name: str) -> None:
    """What a command loads for its user, such as the code of a task, imports from the package as anywhere."""
    program = tmp_path / name
    asked = "from hf_failfast import load_drafter\nimport hf_failfast\nprint(hf_failfast.Conversation.__name__)"
    program.write_text(f"{asked}\nprint(hasattr(hf_failfast, 'nothing'), load_drafter.__name__)")
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.stdout.split() == ["Conversation", "False", "load_drafter"], result.stderr
