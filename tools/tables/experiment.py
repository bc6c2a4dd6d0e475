"""The rows of a stored experiment; without the clock's speedups where the machine was busy."""

from hf_failfast.experiments.catalogue import load
from hf_failfast.experiments.tables import Interval, cells

from . import markdown, result, was_quiet

TIMES = ("draft_ms", "verify_ms")


def table(name: str) -> str:
    document = result(f"results/experiments/{name}.json")
    columns = load(name).columns
    if not was_quiet(document):
        columns = tuple(column for column in columns if not isinstance(column, Interval) and column.key not in TIMES)
    return markdown([column.title for column in columns], cells(columns, document["rows"]))
