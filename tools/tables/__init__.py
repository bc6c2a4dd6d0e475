"""Tables of the README and the docs, written from stored results: no number is typed twice.

A page says which table it wants, and where:

    <!-- table: demo -->
    <!-- /table -->

`make tables` fills in what `table()` of `tools/tables/demo.py` returns; words after the name are its arguments
(`<!-- table: experiment tau -->` calls `table("tau")`). A test fails while a page differs from its results. A new
table is a new file here with a function `table`, and the two markers.
"""

import importlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(r"(?P<start><!-- table: (?P<call>[^>]+?) -->\n)(?P<body>.*?)(?P<end><!-- /table -->)", re.DOTALL)
_MARKER = re.compile(r"^<!-- (?:table: .*|/table) -->$", re.MULTILINE)


def pages() -> list[Path]:
    """Every Markdown page that may hold a table."""
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]


def filled(page: str) -> str:
    """The page's text with every table written anew.

    Raises ValueError on a marker without its partner and on a table that nobody makes.
    """
    blocks = list(_BLOCK.finditer(page))
    if len(_MARKER.findall(page)) != 2 * len(blocks) or any(_MARKER.search(block["body"]) for block in blocks):
        raise ValueError("Every `<!-- table: NAME -->` line needs one `<!-- /table -->` line after it.")
    return _BLOCK.sub(lambda block: f"{block['start']}{_made(block['call'])}\n{block['end']}", page)


def _made(call: str) -> str:
    name, *arguments = call.split()
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError:
        raise ValueError(f"The table {name!r} has no file {name}.py in {Path(__file__).parent.name}/.") from None
    return module.table(*arguments)


def result(path: str) -> Any:
    """A stored result, by its path in the repository."""
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def was_quiet(document: dict[str, Any]) -> bool:
    """Whether a result was measured on a machine that did nothing else: its times are shown only then."""
    hardware = document["hardware"]
    return "load" in hardware and hardware["load"] <= hardware["threads"] + 1


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; None is an empty cell."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)
