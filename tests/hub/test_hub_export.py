"""Exported repositories: what is in them, and that they work where hf_failfast is not installed."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, prompt, saved_drafter, target
from huggingface_hub import ModelCard
from transformers.dynamic_module_utils import get_imports, get_relative_import_files
from typer.testing import CliRunner

import hf_failfast
from hf_failfast.cli.app import app
from hf_failfast.hub.export import ENTRY, REQUIREMENTS, export_hub
from hf_failfast.hub.flatten import flattened

HEADINGS = (
    "Description", "Base model", "Model compatibility", "Additional Arguments", "Output Type changes", "Example usage",
)  # fmt: skip
TRANSFORMERS = ("5.17.0", "5.24.0")


def package(folder, **modules):
    """A package of the given sources; `a__b` is the module `a.b`."""
    for name, source in modules.items():
        path = folder / "package" / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(source)
    return folder / "package"


A = '''"""Not from .b import c."""
from .sub.deep import (  # why
    x,
)

def f():
    from .sub import x
    from . import other, sub as s
    from .sub import deep
    import missing.part as part
'''
FLAT_A = '''"""Not from .b import c."""
from .failfast_sub_deep import (  # why
    x,
)

def f():
    from .failfast_sub import x
    from .failfast_other import __name__ as _failfast_other
    from . import failfast_other as other
    from .failfast_sub import __name__ as _failfast_sub
    from . import failfast_sub as s
    from .failfast_sub_deep import __name__ as _failfast_sub_deep
    from . import failfast_sub_deep as deep
    try:
        import missing.part as part
    except ImportError:
        raise
'''


def test_imports_name_the_flat_files_and_nothing_else_changes(tmp_path):
    root = package(tmp_path, a=A, sub__deep="from ..other import y\n\nx = y\n", other="import json\ny = 1  # kept\n")
    (root / "sub" / "__init__.py").write_text("from .deep import x\n")
    assert flattened("a", package=root) == {
        "failfast_a.py": FLAT_A,
        "failfast_sub.py": "from .failfast_sub_deep import x\n",
        "failfast_sub_deep.py": "from .failfast_other import y\n\nx = y\n",
        "failfast_other.py": "import json\ny = 1  # kept\n",
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\nfrom . import b\n", "a.py:2: `b`, which is no module"),
        ("from package.b import c\n", "a.py:1: an import of the package by its full name"),
        ("import package\n", "a.py:1: an import of the package by its full name"),
        ("from ...b import c\n", "a.py:1: a relative import over several lines or out of the package"),
        ("from \\\n .b import c\n", "a.py:1: a relative import over several lines"),
        ("x = 1; from . import a\n", "a.py:1: an import that does not have one line for itself"),
        ("import importlib\nimportlib.import_module('.b', __name__)\n", "a.py:2: an import by a relative name"),
    ],
)
def test_an_import_that_a_flat_folder_cannot_express_is_named(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        flattened("a", package=package(tmp_path, a=source))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "with-drafter.1"
    export_hub(folder, saved_drafter("canvas_shift", "llama"))
    return folder


def test_transformers_finds_exactly_the_files_that_are_there(exported):
    """The regular expressions that transformers searches with find every file and no other."""
    code = exported / "custom_generate"
    found = {Path(name).name for name in get_relative_import_files(code / "generate.py")}
    assert found | {"generate.py", "requirements.txt"} == {path.name for path in code.iterdir()}
    assert len(found) == len(flattened(ENTRY)) - 1


def test_the_code_asks_for_nothing_that_transformers_does_not_bring(exported):
    """No import, those within functions included, is of a package that transformers does not bring."""
    names = {name for path in (exported / "custom_generate").glob("*.py") for name in get_imports(path)}
    assert names - set(sys.stdlib_module_names) <= {"torch", "transformers", "safetensors", "huggingface_hub"}


def test_the_card_has_the_hubs_headings(exported, tmp_path):
    card = ModelCard.load(exported / "README.md")
    assert "custom_generate" in card.data.tags
    headings = [line.removeprefix("## ") for line in card.text.splitlines() if line.startswith("## ")]
    assert headings == list(HEADINGS)
    assert "assistant_model=" not in card.text
    export_hub(tmp_path / "code-only")
    assert 'assistant_model="<folder or Hub id' in (tmp_path / "code-only" / "README.md").read_text()


def test_the_bundled_drafters_card_licence_and_target_go_along(tmp_path):
    export_hub(tmp_path / "smollm2", hf_failfast.BUNDLED_DRAFTER)
    card = ModelCard.load(tmp_path / "smollm2" / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.license == "apache-2.0"
    assert "(DRAFTER.md)" in card.text
    assert (tmp_path / "smollm2" / "DRAFTER.md").read_text() == (hf_failfast.BUNDLED_DRAFTER / "README.md").read_text()


def in_hub_cache(exported, home, repo_id):
    """The repository as huggingface_hub keeps it after a download."""
    cached = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(exported, cached / "snapshots" / ("0" * 40))
    return repo_id


def run(python, home, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "HF_MODULES_CACHE"}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [python, REPOSITORY / "tests" / "support" / "hub_run.py", *arguments]
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment, cwd=home, timeout=600
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_it_runs_without_the_package_from_a_folder_and_from_the_hub(exported, tmp_path):
    target("llama").save_pretrained(tmp_path / "target")
    names = (str(exported), in_hub_cache(exported, tmp_path, "user/some-drafter"))
    report = run(sys.executable, tmp_path, tmp_path / "target", *names, "--without")["repositories"]
    assert set(report) == set(names)
    for found in report.values():
        assert found["identical"]
        assert found["accepted"] > 0
        assert found["module"].endswith(".custom_generate.failfast_decoding_stats")


@pytest.mark.parametrize(
    ("version", "runs_installed"), [(hf_failfast.__version__, True), ("99.0.0", False)], ids=["same", "other"]
)
def test_an_installed_package_is_run_if_it_is_of_the_same_version(tmp_path, monkeypatch, version, runs_installed):
    monkeypatch.setattr(hf_failfast, "__version__", version)
    folder = tmp_path / f"runs_installed_{runs_installed}"  # a name of its own, since modules are loaded once
    export_hub(folder, saved_drafter("canvas_shift", "llama"))
    output = target("llama").generate(
        prompt(5), custom_generate=str(folder), trust_remote_code=True, return_dict_in_generate=True, max_new_tokens=4
    )
    assert isinstance(output.speculation, hf_failfast.SpecDecodingStats) == runs_installed


@pytest.mark.exhaustive
@pytest.mark.parametrize("version", TRANSFORMERS)
def test_a_fresh_environment_with_torch_and_transformers_only_runs_it(exported, tmp_path, version):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    pins = (f"torch=={pinned('torch')}", f"transformers=={version}")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
    target("llama").save_pretrained(tmp_path / "target")
    names = (str(exported), in_hub_cache(exported, tmp_path, "user/some-drafter"))
    report = run(python, tmp_path, tmp_path / "target", *names)
    assert report["transformers"] == version
    assert all(found["identical"] and found["accepted"] > 0 for found in report["repositories"].values())


def pinned(name):
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


# Bad input


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ValueError, match="is there already and not an empty folder"):
        export_hub(tmp_path)
    with pytest.raises(ValueError, match="is there already"):
        export_hub(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "kept"


def test_a_missing_drafter_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        export_hub(tmp_path / "out", tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_drafter_that_does_not_fit_the_target_is_refused(tmp_path):
    target("llama").save_pretrained(tmp_path / "target")
    config = json.loads((tmp_path / "target" / "config.json").read_text()) | {"vocab_size": 50_000}
    (tmp_path / "target" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not fit .* they cannot come from the same tokenizer"):
        export_hub(tmp_path / "out", saved_drafter("canvas_shift", "llama"), str(tmp_path / "target"))
    assert not (tmp_path / "out").exists()


def test_a_drafter_without_safetensors_is_refused(tmp_path):
    shutil.copytree(saved_drafter("canvas_shift", "llama"), tmp_path / "drafter")
    (tmp_path / "drafter" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights in safetensors files"):
        export_hub(tmp_path / "out", tmp_path / "drafter")
    assert [path.name for path in tmp_path.iterdir()] == ["drafter"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_no_half_repository(tmp_path, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("hf_failfast.hub.export.shutil.copyfile", fails)
    with pytest.raises(type(error)):
        export_hub(tmp_path / "out", saved_drafter("canvas_shift", "llama"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["read-only", "a file"])
def test_a_place_that_cannot_be_written_is_named_in_one_line(tmp_path, monkeypatch, kind):
    place = tmp_path / "place"
    if kind == "a file":
        place.write_text("kept")
    else:  # as everyone but root is answered there
        place.mkdir()

        def mkdir(path, *arguments, make=os.mkdir):
            if Path(path).parent == place:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            make(path, *arguments)

        monkeypatch.setattr(os, "mkdir", mkdir)
    result = CliRunner().invoke(app, ["export-hub", str(place / "out")])
    assert result.exit_code == 1
    assert result.stderr.startswith("hf-failfast: ") and str(place) in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["place"]


def test_without_a_drafter_the_code_asks_for_one(tmp_path):
    export_hub(tmp_path / "out")
    with pytest.raises(ValueError, match="holds no drafter: pass `assistant_model`"):
        target("llama").generate(prompt(5), custom_generate=str(tmp_path / "out"), trust_remote_code=True)


def test_requirements_are_the_packages(exported):
    metadata = (REPOSITORY / "pyproject.toml").read_text()
    assert all(f'"{requirement}' in metadata for requirement in REQUIREMENTS)
    assert (exported / "custom_generate" / "requirements.txt").read_text().split() == list(REQUIREMENTS)
