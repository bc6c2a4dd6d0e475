"""Tables of measured rows, and the JSON document that holds them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """Which number of a row is shown, and how it is written: form as in `format`."""

    title: str
    key: str
    form: str = ""

    def cell(self, row: Row) -> str:
        """Empty where the row has no such number."""
        value = row.get(self.key)
        return "" if value is None else format(value, "" if isinstance(value, str) else self.form)


class Interval(Column):
    """A speedup with the limits of its confidence interval, where there is one."""

    def cell(self, row: Row) -> str:
        low, high = row.get(f"{self.key}_ci95_low"), row.get(f"{self.key}_ci95_high")
        is_known = isinstance(low, float) and isinstance(high, float)
        return super().cell(row) + (f" ({low:.2f} to {high:.2f})" if is_known else "")


class RowsPerToken(Column):
    """How many rows of the target's forwards a token of the answer took; plain decoding takes one."""

    def cell(self, row: Row) -> str:
        length, rate = row.get("mean_acceptance_length"), row.get("acceptance_rate")
        if not length or not rate:
            return ""
        return format(((length - 1) / rate + 1) / length, self.form)


SPEED = (
    Interval("speedup", "speedup", ".2f"),
    Column("modelled speedup", "modelled_speedup", ".2f"),
    Column("mean acceptance length", "mean_acceptance_length", ".2f"),
    Column("acceptance rate", "acceptance_rate", ".0%"),
    Column("passes per round", "drafter_passes_per_round", ".2f"),
)
VERIFIED = RowsPerToken("rows verified per token", "rows_per_token", ".2f")
MEMORY = Column("peak memory, MiB", "peak_memory_mib", ".0f")


def cells(columns: Sequence[Column], rows: Sequence[Row]) -> list[list[str]]:
    return [[column.cell(row) for column in columns] for row in rows]


def show(columns: Sequence[Column], document: Row, as_json: bool) -> None:
    """An experiment's rows as a table and its totals, or the document as one line of JSON."""
    if as_json:
        print(json.dumps(document))
        return
    print_rows(columns, document["rows"], document["experiment"])
    for key, value in document["totals"].items():
        if not isinstance(value, list):
            Console().print(f"{key.replace('_', ' ')}: {value}")


def print_rows(columns: Sequence[Column], rows: Sequence[Row], title: str) -> None:
    table = Table(*(column.title for column in columns), title=title)
    for row in cells(columns, rows):
        table.add_row(*row)
    Console().print(table)


def write(path: Path, document: Row) -> None:
    """The document as JSON, its numbers rounded to six digits: more say nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(document), indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Row:
    """Raises FileNotFoundError saying how to make the file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: run the experiment without --plot-only first.")
    document: Row = json.loads(path.read_text(encoding="utf-8"))
    return document


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
