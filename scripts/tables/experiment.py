"""The rows of a stored experiment."""

from hf_failfast.eval.experiments.columns import COLUMNS, cells

from . import markdown, result


def table(name: str) -> str:
    columns = COLUMNS[name]
    rows = result(f"eval/results/experiments/{name}.json")["rows"]
    return markdown([column.title for column in columns], cells(columns, rows))
