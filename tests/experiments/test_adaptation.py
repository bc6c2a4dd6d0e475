"""`hf-failfast adapt`: a drafter learns from answers to a user's prompts."""

import json
from pathlib import Path

import pytest
from conftest import character_tokenizer, saved_drafter, target
from typer.testing import CliRunner

import hf_failfast
from hf_failfast.cli.app import app
from hf_failfast.drafters.adapter import FILE

PROMPTS = ["abc", "bcd", "cde", "def", "efg", "fgh"]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Target, drafter and prompts of the command."""
    folder = tmp_path / "target"
    target("llama").save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return [str(folder), saved_drafter("canvas_shift", "llama"), "--prompts", str(file)]


@pytest.mark.parametrize("merged", [False, True])
def test_the_command(arguments: list[str], tmp_path: Path, merged: bool) -> None:
    """It learns from the prompts that are not held out, says what that did, and writes what `load_drafter` loads."""
    output = str(tmp_path / "adapted")
    options = ["--output", output, "--max-new-tokens", "24", "--json", *(["--merged"] if merged else [])]
    result = CliRunner().invoke(app, ["adapt", *arguments, *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["prompts"], found["held_out_prompts"]) == (4, 2)
    assert found["learned_steps"] == 8 and found["ended"] is None
    for name in ("before", "after"):
        assert 1 <= found[name]["low"] <= found[name]["tokens_per_round"] <= found[name]["high"]
    assert Path(output, FILE).is_file()
    assert Path(output, "model.safetensors").is_file() is merged
    loaded = hf_failfast.load_drafter(output)
    assert any("AdaptedLinear" in type(module).__name__ for module in loaded.modules()) is not merged


def test_one_prompt_is_refused(arguments: list[str], tmp_path: Path) -> None:
    """Without a prompt to measure on it ends with one line that says so."""
    Path(arguments[-1]).write_text('{"prompt": "abc"}\n')
    result = CliRunner().invoke(app, ["adapt", *arguments, "--output", str(tmp_path / "adapted")])
    assert result.exit_code == 1
    assert "`prompts` must hold at least 2 prompts" in result.output
    assert not (tmp_path / "adapted").exists()
