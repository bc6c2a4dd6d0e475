"""Every code block of the README and the docs runs.

Python blocks run as they stand, those of a page one after another in one namespace, with two substitutions that keep
them offline and quick: a Hub id of `HUB` stands for a tiny random checkpoint of the same kind, and "cuda" for "cpu".
Shell commands are parsed by what they call: options, make targets, extras and files must exist; those of `RUN` are
run, on the same tiny checkpoints.
"""

import json
import re
import shlex
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, saved_drafter, target
from test_layering import LEAVES, MAY_IMPORT
from transformers import PreTrainedTokenizerFast
from typer.main import get_command
from typer.testing import CliRunner

import hf_failfast
from hf_failfast.cli.app import app
from hf_failfast.hub.export import export_hub

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
PLACEHOLDER = re.compile(r"^(\.\.\.|<.*>)$")
HUB_ID = re.compile(r"(?<=[\"'])[\w-]+/[\w.-]+(?=[\"'])")

# What is run; other commands train, measure or download for minutes.
RUN = {("hf-failfast", "inspect"), ("hf-failfast", "generate"), ("hf-failfast", "export-hub"), ("hf-failfast", "push")}


def blocks(page: Path, *languages: str) -> list[str]:
    return [found["code"] for found in BLOCK.finditer(page.read_text()) if found["language"] in languages]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """Name in the docs -> folder of a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    target("llama").save_pretrained(folder / "target")
    tokenizer.save_pretrained(folder / "target")
    tokenizer.chat_template = None
    drafter = saved_drafter("canvas_shift", "llama")
    export_hub(folder / "repository", drafter)
    plain = folder / "any-causal-lm"
    hf_failfast.load_drafter(drafter).model.save_pretrained(plain)
    (folder / "repository" / "README.md").touch()
    return {
        "HuggingFaceTB/SmolLM2-135M-Instruct": str(folder / "target"),
        "Qwen/Qwen2.5-7B-Instruct": str(folder / "target"),
        "Efficient-Large-Model/Fast_dLLM_v2_1.5B": drafter,
        "user/some-diffusion-lm": str(plain),
        "user/my-repository": str(folder / "repository"),
        "my-repository": str(folder / "repository"),
        "my-drafter": drafter,
    }


def substituted(code: str, checkpoints: dict[str, str]) -> str:
    def local(found: re.Match[str]) -> str:
        assert found[0] in checkpoints, f"{found[0]!r} has no tiny checkpoint in tests/test_docs.py"
        return checkpoints[found[0]]

    return HUB_ID.sub(local, code).replace('"cuda"', '"cpu"')


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(
    page: Path,
    checkpoints: dict[str, str],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hf_failfast, "BUNDLED_DRAFTER", checkpoints["my-drafter"])
    names: dict[str, Any] = {"__name__": "docs", "drafter_tokenizer": tokenizer}
    for code in blocks(page, "python"):
        for package in ("evaluate", "vllm", "openai"):  # where they are not installed, the rest of the page is not run
            if f"import {package}" in code or f"from {package} import" in code:
                pytest.importorskip(package)
        exec(compile(substituted(code, checkpoints), page.name, "exec"), names)


def commands(page: Path) -> list[list[str]]:
    """The words of every command line in the page's shell blocks."""
    joined = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


SHELL = [(page.name, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), SHELL, ids=[" ".join(words)[:60] for _, words in SHELL])
def test_shell_commands_hold(page: str, words: list[str], checkpoints: dict[str, str], tmp_path: Path) -> None:
    while "=" in words[0]:  # variables for the command
        words = words[1:]
    check = CHECKS.get(words[0])
    assert check is not None, f"{words[0]!r} in {page} is a command that this test cannot judge"
    check(words[1:])
    if tuple(words[:2]) in RUN and not any(PLACEHOLDER.match(word) for word in words):
        arguments = [checkpoints.get(word, word).replace("cuda", "cpu") for word in words[1:]]
        if words[1] == "export-hub":
            arguments[1] = str(tmp_path / "new")
        if words[1] == "push":
            arguments[1] = "user/name"
            arguments += [] if "--dry-run" in arguments else ["--dry-run"]
        if words[1] == "generate":
            arguments += ["--repeats", "1", "--max-new-tokens", "4"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output


def check_failfast(words: list[str]) -> None:
    group = get_command(app)
    name, command, arguments = group.resolve_command(group.make_context("hf-failfast", words[:1]), words)
    assert command is not None, f"no command {name!r}"
    command.make_context(name, ["1" if PLACEHOLDER.match(word) else word for word in arguments])


def check_lm_eval(words: list[str]) -> None:
    HarnessCLI = pytest.importorskip("lm_eval._cli").HarnessCLI
    HarnessCLI()._parser.parse_args(["run", *words])


def check_make(words: list[str]) -> None:
    targets = [word for word in words if "=" not in word]
    result = subprocess.run(["make", "-n", *targets], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[0] == "install"
    for word in words[1:]:
        named = re.search(r"\[(.*)\]$", word)
        assert set(named[1].split(",") if named else ()) <= set(extras)


def check_python(words: list[str]) -> None:
    if words[0] == "-m":
        assert find_spec(words[1]) is not None, f"no module {words[1]}"
    else:
        assert (REPOSITORY / words[0]).is_file(), f"no file {words[0]}"


CHECKS = {
    "hf-failfast": check_failfast,
    "hf-failfast-eval": check_lm_eval,
    "lm_eval": check_lm_eval,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_other_blocks_are_of_a_known_kind_and_links_lead_somewhere(page: Path) -> None:
    """YAML and JSON blocks parse, and every relative link, its heading included, leads to something that exists."""
    for found in BLOCK.finditer(page.read_text()):
        assert found["language"] in ("python", "bash", "yaml", "json", "text"), found[0]
    for code in blocks(page, "json"):
        json.loads(code)
    for code in blocks(page, "yaml"):
        yaml.compose(code)
    for link, heading in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if not link.startswith("http"):
            place = page.parent / link if link else page
            assert place.exists(), f"{page.name} links to {link}"
            assert not heading or heading in anchors(place), f"{page.name} links to {link}#{heading}"


def anchors(page: Path) -> list[str]:
    """The names that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_the_readme_begins_with_the_stored_numbers() -> None:
    """The README's first speedups are those of its table and of results/bench.json, and it has at most 100 lines."""
    text = PAGES[0].read_text()
    row = re.search(r"^\| hf_failfast \| [\d.]+ \| ([\d.]+x) \| ([\d.]+ to [\d.]+) \|", text, re.MULTILINE)
    assert f"{row[1]} plain `generate` (95 % interval {row[2]})" in text
    over_best = json.loads((REPOSITORY / "results" / "bench.json").read_text())["default_speedup_over_best_hf"]
    assert f"{over_best:.2f}x the best of transformers' own methods" in text
    assert len(text.splitlines()) <= 100


WITH_FIGURES = (
    "README",
    "comparison",
    "evaluation",
    "experiments",
    "gpu",
    "log",
    "performance",
    "strategies",
    "training",
)


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_figures_say_what_the_measured_target_is(name: str) -> None:
    """Its weights are not the published ones: each page with figures of SmolLM2 says so."""
    (page,) = (page for page in PAGES if page.stem == name)
    assert re.search(r"4-bit GGUF file[ ,(]+Q4_1\)?, dequantised", page.read_text())


def test_the_one_figure_is_the_same_everywhere() -> None:
    """README and docs name one speedup of the pair; no page has another one of `generate`'s for it."""
    document = json.loads((REPOSITORY / "results" / "bench.json").read_text())
    (ours,) = (row for row in document["results"] if row["method"] == "hf_failfast")
    figure = f"{ours['speedup']:.2f}x plain `generate` (95 % interval"
    for page in PAGES:
        for found in re.findall(r"[\d.]+x plain `generate` \(95 % interval", page.read_text()):
            assert found == figure, page.name
    assert sum(figure in page.read_text() for page in PAGES) >= 3


def test_the_architecture_page_has_the_rows_of_the_imports() -> None:
    """docs/architecture.md says of every part what tests/test_layering.py lets it import."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    table = page.partition("| part | may import |\n")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", line) for line in table.splitlines()[1:]]
    assert {part: set(names) for part, *names in rows} == {
        part: names for part, names in MAY_IMPORT.items() if part not in LEAVES
    }


def test_the_architecture_page_shows_the_package() -> None:
    """The tree of docs/architecture.md names only paths that exist, and every part and folder of code."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    tree = page.partition("```text\n")[2].partition("\n\ndocs/")[0]
    package, above, shown = REPOSITORY / "hf_failfast", [], set()
    for indent, name in re.findall(r"^( +)([\w.]+/?) ", tree, re.MULTILINE):
        above = [*above[: len(indent) // 2 - 1], name]
        shown.add("".join(above))
    assert not [path for path in shown if not (package / path).exists()]
    code = {path.relative_to(package).parent for path in package.rglob("*.py")}
    assert {f"{folder.as_posix()}/" for folder in code if 0 < len(folder.parts) <= 2} <= shown


def test_the_index_names_every_page() -> None:
    """docs/index.md links to every other page of docs/."""
    index = (REPOSITORY / "docs" / "index.md").read_text()
    for page in PAGES[2:]:
        assert page.name == "index.md" or f"({page.name})" in index
    assert "(../CONTRIBUTING.md)" in index
