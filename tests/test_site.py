"""The site: links lead to the places of pages there, and it builds without a warning."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from hf_failfast.experiments.doctor import diagnosis
from tools import site_pages


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("README.md", "[a](docs/gpu.md) [b](docs/index.md#commands)", "[a](gpu.md) [b](documentation.md#commands)"),
        ("docs/gpu.md", "[a](../README.md#results), [b](log.md)", "[a](index.md#results), [b](log.md)"),
        ("docs/gpu.md", "[a](../results/bench.json) [b](#kernels)", "[a](results/bench.json) [b](#kernels)"),
        ("docs/gpu.md", "[a](../examples) ![p](trace.png)", "[a](examples/README.md) ![p](trace.png)"),
        ("examples/README.md", "[a](../docs/publishing.md#a) [b](chat.py)", "[a](../publishing.md#a) [b](chat.py)"),
        ("docs/gpu.md", "[a](https://example.org/docs/gpu.md)", "[a](https://example.org/docs/gpu.md)"),
        ("docs/gpu.md", "<!-- table: demo -->\n| a |\n<!-- /table -->", "\n| a |\n"),
    ],
)
def test_links_lead_to_places_on_the_site(page: str, text: str, expected: str) -> None:
    assert site_pages.linked(text, page) == expected


def test_linked_files_come_along() -> None:
    found = set(site_pages.linked_files(["README.md", "docs/index.md", "examples/README.md"]))
    assert {"CITATION.cff", "examples/chat.py", "docs/choosing.md", "examples/README.md"} <= found


def test_the_navigation_names_every_page() -> None:
    navigation = set(re.findall(r"^ +- ([\w/.]+\.md)$", _config(), re.MULTILINE))
    pages = [path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").glob("*.md")]
    assert navigation == {site_pages.place(page) for page in [*pages, *site_pages.OUTSIDE]}


def test_the_api_page_names_every_public_name() -> None:
    """By the module that defines it, as docstrings are found."""
    imports = [
        node
        for node in ast.parse((REPOSITORY / "hf_failfast" / "public.py").read_text()).body
        if isinstance(node, ast.ImportFrom)
    ]
    public = {alias.name for node in imports for alias in node.names}
    page = (REPOSITORY / "docs" / "api.md").read_text()
    named = re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)
    assert public == {path.rpartition(".")[2].removeprefix("_") for path in named} | {"BUNDLED_DRAFTER"}
    for path in named:
        module, _, name = path.rpartition(".")
        source = (REPOSITORY / module.replace(".", "/")).with_suffix(".py").read_text()
        assert re.search(rf"^(?:class|def) {name}\b", source, re.MULTILINE), f"{path} is defined elsewhere"


def test_explained_names_become_a_list() -> None:
    pytest.importorskip("griffe")
    from tools.site_docstrings import as_markdown

    docstring = (
        "What it is.\n\nx, y: two numbers,\n    on two lines. z: none.\ntext: a text.\n\nRaises ValueError: no."
    )
    assert as_markdown(docstring) == (
        "What it is.\n\n- `x`, `y`: two numbers, on two lines. z: none.\n\n- `text`: a text.\n\nRaises ValueError: no."
    )


def test_the_faq_has_every_sentence_of_the_doctor() -> None:
    """A row of docs/faq.md for every rule, in its order, with the words that the doctor says."""
    page = (REPOSITORY / "docs" / "faq.md").read_text()
    table = page.partition("| symptom |")[2].partition("\n\n")[0]
    said = [re.findall(r'"(.*?)"', line.split("|")[2]) for line in table.splitlines()[2:]]
    assert len(said) == len(diagnosis.RULES)
    sentences = {diagnosis._unequal: diagnosis._of_parting}
    for phrases, rule in zip(said, diagnosis.RULES, strict=True):
        words = re.sub(r'"\s*f?"', "", inspect.getsource(sentences.get(rule, rule)))
        assert phrases and all(phrase in words for phrase in phrases), (rule.__name__, phrases)


@pytest.mark.exhaustive
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    """`mkdocs build --strict`: no link or heading that leads nowhere, no page outside of the navigation."""
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "site" / "api.html").read_text("utf-8")
    for name in ("load_drafter", "mean_acceptance_length", "confidence_threshold"):
        assert name in page
    assert (tmp_path / "site" / "results" / "bench.json").is_file()


def _config() -> str:
    return (REPOSITORY / "mkdocs.yml").read_text()
