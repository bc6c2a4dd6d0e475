"""What works with what, as the tests' own matrix (`tests/support/matrix.py`) says."""

from tests.support.matrix import MATRIX

from . import markdown


def table() -> str:
    rows = []
    for group, members in MATRIX.items():
        for index, row in enumerate(members):
            test = None if row.test is None else f"`{row.test}`"
            rows.append((f"**{group}**" if index == 0 else None, row.feature, row.result, row.note or None, test))
    return markdown(("", "with", "result", "", "test"), rows)
