"""Imports point one way, and importing the package is cheap."""

import ast
import json
import subprocess
import sys
from typing import Any

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "hf_failfast"
CORE = [
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    for path in sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("drafters/*.py"), *PACKAGE.glob("kernels/*.py")])
]
# Modules that are commands, or serve them; the core may not know them.
FRONT = {
    "cli",
    "commands",
    "showcase",
    "comparison",
    "timing",
    "bench",
    "training",
    "eval",
    "hub",
    "pair",
    "progress",
    "trace_page",
}


def imports(module: str) -> tuple[set[str], set[str]]:
    """(modules of the package, top-level names of others) that a module imports anywhere in its code."""
    path = PACKAGE / (module.replace(".", "/") + ".py")
    package = ["hf_failfast", *module.split(".")[:-1]]
    own, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = [source] if node.module else [f"{source}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "hf_failfast":
                own.add(name.removeprefix("hf_failfast").removeprefix("."))
            else:
                others.add(name.split(".")[0])
    return own, others


def test_the_reader_of_imports() -> None:
    """The checks below would pass because no import is found at all."""
    assert imports("decoding")[0] >= {"drafters", "runners", "acceptance"}
    assert imports("drafters.base")[0] >= {"config", "length_policy"}
    assert {"torch", "transformers"} <= imports("decoding")[1]


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("config", set()),
        ("stats", {"advice"}),
        ("advice", {"stats"}),
        ("verification", set()),
        ("rows", set()),
        ("length_policy", {"config", "kernels"}),
        ("kernels.reference", set()),
    ],
)
def test_leaves_know_only_torch(module: str, allowed: set[str]) -> None:
    """A leaf that imports models or the loop could not be read or tested alone."""
    own, others = imports(module)
    assert own <= allowed
    assert others - set(sys.stdlib_module_names) <= {"torch"}


@pytest.mark.parametrize("module", [name for name in CORE if name.startswith("drafters")])
def test_drafters_know_neither_the_loop_nor_the_doors(module: str) -> None:
    """A drafter that knows the loop could not serve another one."""
    own, _ = imports(module)
    known = {
        "compatibility",
        "config",
        "length_policy",
        "rows",
        "cache",
        "runners",
        "runner_choice",
        "drafters",
        "kernels",
    }
    assert all(name.split(".")[0] in known for name in own), own


@pytest.mark.parametrize(
    "module",
    [
        "decoding",
        "acceptance",
        "candidate_generator",
        "text",
        "stopping",
        "support",
        "runners",
        "runner_choice",
        "graph_runner",
        "cuda_graphs",
        "cache",
    ],
)
def test_the_loop_knows_no_family(module: str) -> None:
    """A family's special case in the loop would grow with each family."""
    own, _ = imports(module)
    assert not {name for name in own if name.startswith("drafters.")}
    assert not own & {"generate", "candidate_generator", *FRONT}


@pytest.mark.parametrize("module", [name for name in CORE if name.split(".")[0] not in FRONT | {"__init__"}])
def test_only_the_front_knows_the_doors(module: str) -> None:
    """An import of `generate` from below would be a circle."""
    own, _ = imports(module)
    assert "generate" not in own
    assert "" not in own, "imports the package itself"
    assert not {name.split(".")[0] for name in own} & FRONT


IMPORT = """
import json, sys, time
import transformers
from transformers import GenerationMixin
modules, methods, level = set(sys.modules), dict(vars(GenerationMixin)), transformers.logging.get_verbosity()
start = time.process_time()
import hf_failfast
print(json.dumps({
    "seconds": time.process_time() - start,
    "modules": sorted(set(sys.modules) - modules),
    "methods": [name for name, value in vars(GenerationMixin).items() if methods.get(name) is not value],
    "same_verbosity": transformers.logging.get_verbosity() == level,
}))
"""


# Processor time.
IMPORT_SECONDS = 0.3


def import_once() -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, cwd=REPOSITORY, timeout=300
    )
    return json.loads(result.stdout.splitlines()[-1])


def test_import() -> None:
    """Everyone who imports the package would wait for parts that few need, or find transformers changed."""
    report = import_once()
    heavy = {"typer", "rich", "accelerate", "lm_eval", "evaluate", "matplotlib", "gguf", "triton", "hypothesis"}
    assert "hf_failfast.decoding.loop" in report["modules"]
    assert not {name for name in report["modules"] if name.split(".")[0] in heavy}
    assert report["methods"] == ["load_custom_generate"]
    assert report["same_verbosity"]
    # Seconds of this process alone, whatever else the machine does; cold files and full caches still cost some.
    seconds = report["seconds"]
    for _ in range(4):
        if seconds >= IMPORT_SECONDS:
            seconds = min(seconds, import_once()["seconds"])
    assert seconds < IMPORT_SECONDS
