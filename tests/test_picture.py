"""The README's picture comes from a generation."""

import re

import pytest
from conftest import REPOSITORY

from hf_failfast.pairs import load_pair
from tools.picture import OUT, picture


def test_the_picture_shows_the_answer_in_two_colours_and_the_counts(folder):
    svg = picture(load_pair(str(folder), str(folder), "auto", "cpu"), "a b c", 24)
    text = re.sub(r"&#160;", " ", re.sub(r"<[^>]+>", "", svg.split("</defs>")[-1]))
    assert "> a b c" in text.replace("&gt;", ">")
    counts = re.search(r"(\d+) tokens in (\d+) rounds, (\d+) of them", text)
    emitted, rounds, accepted = map(int, counts.groups())
    assert emitted == rounds + accepted
    classes = set(re.findall(r'class="(generation-r\d+)"', svg))
    assert len(classes) >= (3 if accepted else 2)


def test_the_readme_shows_it():
    assert OUT.is_file()
    assert f"({OUT.relative_to(REPOSITORY)})" in (REPOSITORY / "README.md").read_text()


@pytest.mark.slow
def test_the_stored_picture_is_that_of_the_demos_pair():
    assert "comet" in OUT.read_text()
