"""Stored numbers say where they come from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from hf_failfast.measure import provenance as module
from hf_failfast.measure.provenance import provenance


def test_the_facts_are_this_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/hf-failfast", "demo", "--dtype", "a b"])
    monkeypatch.setattr(sys, "orig_argv", ["/some/python", *sys.argv])
    facts = json.loads(json.dumps(provenance("cpu")))
    assert facts["command"] == "hf-failfast demo --dtype 'a b'"
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["hardware"]["threads"] == torch.get_num_threads()
    assert facts["hardware"]["processor"]


def test_a_module_s_command_can_be_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["/some/python", "-m", "tools.evidence", "--limit", "2"])
    assert provenance("cpu")["command"] == "python -m tools.evidence --limit 2"


def test_the_commit_is_the_source_tree_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if (REPOSITORY / ".git").exists():
        head = subprocess.run(
            ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        assert head.startswith(provenance()["commit"].removesuffix("-dirty"))
    monkeypatch.setattr(module, "__file__", str(tmp_path / "hf_failfast" / "measure" / "provenance.py"))
    assert provenance()["commit"] is None
