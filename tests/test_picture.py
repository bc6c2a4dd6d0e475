"""The README's pictures come from generations."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import REPOSITORY

from hf_failfast.pairs import load_pair
from tools.picture import BROWSERS, OUT, PAGE_OUT, PAGE_SIZE, page, photograph, picture


def test_the_picture_shows_the_answer_in_two_colours_and_the_counts(folder):
    svg = picture(load_pair(str(folder), str(folder), "auto", "cpu"), "a b c", 24)
    text = re.sub(r"&#160;", " ", re.sub(r"<[^>]+>", "", svg.split("</defs>")[-1]))
    assert "> a b c" in text.replace("&gt;", ">")
    counts = re.search(r"(\d+) tokens in (\d+) rounds, (\d+) of them", text)
    emitted, rounds, accepted = map(int, counts.groups())
    assert emitted == rounds + accepted
    classes = set(re.findall(r'class="(generation-r\d+)"', svg))
    assert len(classes) >= (3 if accepted else 2)


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="there is no browser to draw the page")
def test_the_page_is_photographed(folder, tmp_path: Path):
    browser = next(found for name in BROWSERS if (found := shutil.which(name)))
    photograph(browser, page(load_pair(str(folder), str(folder), "auto", "cpu"), "a b c", 24), tmp_path / "page.png")
    header = (tmp_path / "page.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert tuple(int.from_bytes(header[at : at + 4], "big") for at in (16, 20)) == PAGE_SIZE


@pytest.mark.parametrize("path", [OUT, PAGE_OUT])
def test_the_readme_shows_it(path: Path):
    assert path.is_file()
    assert f"({path.relative_to(REPOSITORY)})" in (REPOSITORY / "README.md").read_text()


@pytest.mark.slow
def test_the_stored_picture_is_that_of_the_demos_pair():
    assert "comet" in OUT.read_text()
