"""The tables of README and docs are made from the stored results."""

import pytest

from tools import tables


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_pages_agree_with_their_results(page: tables.Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == tables.filled(text), "run `make tables`"


def test_a_table_is_written_between_its_markers_and_stays() -> None:
    page = "before\n<!-- table: demo -->\nan old number\n<!-- /table -->\nafter\n"
    once = tables.filled(page)
    assert once.startswith("before\n<!-- table: demo -->\n| method |")
    assert once.endswith("|\n<!-- /table -->\nafter\n")
    assert "an old number" not in once
    assert tables.filled(once) == once


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- table: demo -->\n", "needs one"),
        ("<!-- /table -->\n", "needs one"),
        ("<!-- table: demo -->\n<!-- table: demo -->\n<!-- /table -->\n", "needs one"),
        ("<!-- table: nothing -->\n<!-- /table -->\n", "'nothing' has no file"),
    ],
)
def test_bad_markers_are_named(page: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tables.filled(page)


def test_markdown_leaves_unknown_cells_empty() -> None:
    assert tables.markdown(("a", "b"), [(1, None)]) == "| a | b |\n| --- | --- |\n| 1 |  |"
