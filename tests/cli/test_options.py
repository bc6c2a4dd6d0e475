"""What several commands make of their options."""

from pathlib import Path

import pytest

from hf_failfast.cli.options import given_prompts


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1e"])
def test_lines_end_at_line_feeds_only(tmp_path: Path, separator: str) -> None:
    """Other separators belong to a prompt; a byte-order mark and blank lines do not count."""
    file = tmp_path / "prompts.txt"
    file.write_text(f"\ufeffone{separator}more\n\ntwo\n", encoding="utf-8")
    assert given_prompts(None, str(file)) == [f"one{separator}more", "two"]
