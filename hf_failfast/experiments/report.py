"""An experiment's document on disk and on the screen."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .columns import COLUMNS, cells


def write(path: Path, document: dict[str, Any]) -> None:
    """The document as JSON, its numbers rounded to six digits: more say nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(document), indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Raises FileNotFoundError naming the command's part that would make the file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: run the experiment without --plot-only first.")
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def show(name: str, document: dict[str, Any], as_json: bool) -> None:
    """The rows as a table and the totals, or the document as one line of JSON."""
    if as_json:
        print(json.dumps(document))
        return
    print_rows(name, document["rows"], name)
    console = Console()
    for key, value in document["totals"].items():
        if not isinstance(value, list):
            console.print(f"{key.replace('_', ' ')}: {value}")


def print_rows(name: str, rows: Sequence[dict[str, Any]], title: str) -> None:
    """A table of an experiment's columns."""
    columns = COLUMNS[name]
    table = Table(*(column.title for column in columns), title=title)
    for row in cells(columns, rows):
        table.add_row(*row)
    Console().print(table)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
