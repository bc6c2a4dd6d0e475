"""Every row of what works with what names a test that runs."""

import ast

import pytest
from conftest import REPOSITORY
from matrix import MATRIX, Row

ROWS = [row for rows in MATRIX.values() for row in rows]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.feature)
def test_a_row_names_its_test(row: Row) -> None:
    """A row names a test that exists and is not skipped, or says that it is not tested."""
    assert (row.test is None) == (row.result == "not tested"), "untested or tested, not both"
    if row.test is not None:
        file, name = row.test.split("::")
        tree = ast.parse(next((REPOSITORY / "tests").rglob(f"{file}.py")).read_text())
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"tests/{file}.py has no {name}"
        decorators = [ast.unparse(decorator) for decorator in functions[name].decorator_list]
        assert not any("mark.skip" in decorator or "mark.xfail" in decorator for decorator in decorators)


def test_no_feature_is_told_twice() -> None:
    assert len({row.feature for row in ROWS}) == len(ROWS)
