"""Plain words: phrases that readers have to read twice stand in no text of the repository."""

import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

# What to write instead. "Behind" in space (a model behind a server) can be said in other words, too.
INSTEAD = {
    "behind": "after",
    "in front of": "before",
    "so many": "n (num_tokens, that number of)",
    "likewise": "too, or the words themselves",
    "the like": "the things themselves",
    "what of it": "the subject",
    "of which": "a sentence of its own",
    "as far as": "where, until, or if",
    "the doors": "the entry points",
}
GAP = r"[\s#]+"  # between words; line breaks with the mark of a comment among them
BANNED = re.compile("|".join(rf"\b{phrase.replace(' ', GAP)}\b" for phrase in INSTEAD), re.IGNORECASE)

FOLDERS = ("docs", "hf_failfast", "tests", "tools", "benchmarks", "examples", "eval", "custom_generate", ".ci")
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "Makefile", "pyproject.toml", "mkdocs.yml")
KINDS = {".md", ".py", ".yaml", ".html", ".ipynb", ""}


def texts() -> list[Path]:
    """Every page and source file that people of this project wrote."""
    below = [path for folder in FOLDERS for path in sorted((REPOSITORY / folder).rglob("*"))]
    top = [REPOSITORY / name for name in TOP]
    written = [path for path in below if path.suffix in KINDS and path.is_file() and "__pycache__" not in path.parts]
    return [path for path in (*top, *written) if path != Path(__file__)]


def found(text: str) -> list[str]:
    """Line, phrase and what to write instead, for every banned phrase of a text."""
    lines = []
    for match in BANNED.finditer(text):
        phrase = re.sub(GAP, " ", match[0].lower())
        lines.append(f"{text.count(chr(10), 0, match.start()) + 1}: {phrase!r}, better: {INSTEAD[phrase]}")
    return lines


def test_no_text_uses_a_banned_phrase() -> None:
    """No page, docstring, comment or message of the repository has a phrase of `INSTEAD`."""
    faults = [f"{path.relative_to(REPOSITORY)}:{line}" for path in texts() for line in found(path.read_text("utf-8"))]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one\nThe token behind it.", ["2: 'behind', better: after"]),
        ("# a batch of so\n# many rows", ["1: 'so many', better: n (num_tokens, that number of)"]),
        ("def gets_nothing_behind_a_stop", []),
        ("the likelihood", []),
    ],
)
def test_phrases_are_found_by_line_across_line_breaks(text: str, lines: list[str]) -> None:
    """A phrase is found in any case and across lines of a comment; parts of names and words are not phrases."""
    assert found(text) == lines
