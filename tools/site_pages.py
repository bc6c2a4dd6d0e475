"""What the site holds beside docs/: a hook of mkdocs (`mkdocs.yml`).

In the repository pages link to each other and to files by their place in it. On the site README.md is the first page
and docs/ the root, so that each link is turned into one to the place where its file stands there; files that a page
links to come along.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
# Pages by their place in the repository; those whose place on the site is another one.
NOTEBOOK = "examples/quickstart.ipynb"
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", NOTEBOOK)
MOVED = {"README.md": "index.md", "docs/index.md": "documentation.md", NOTEBOOK: "examples/quickstart.md"}
# `make notebook` leaves it here with its outputs; without that the site shows it as it is stored.
EXECUTED = ROOT / "build" / "quickstart.ipynb"

_LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?P<heading>#[^)\s]*)?(?=\))")
_TABLE_MARKER = re.compile(r"^<!-- (?:table: .*|/table) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages outside of docs/ and every file that a page links to."""
    from mkdocs.structure.files import File

    pages = [*OUTSIDE, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))]
    for path in pages:
        if path.startswith("docs/") and (stored := files.get_file_from_path(path.removeprefix("docs/"))) is not None:
            files.remove(stored)
    pictures: dict[str, bytes] = {}
    for path in pages:
        text = _text(path) if path != NOTEBOOK else notebook(pictures)
        files.append(File.generated(config, place(path), content=linked(text, path)))
    for name, picture in pictures.items():
        files.append(File.generated(config, posixpath.join(posixpath.dirname(NOTEBOOK), name), content=picture))
    for path in sorted(set(linked_files(pages)) - set(pages)):
        if files.get_file_from_path(place(path)) is None:
            files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
    return files


def notebook(pictures: dict[str, bytes]) -> str:
    """The notebook as Markdown; its pictures are added to `pictures`, by name."""
    from nbconvert import MarkdownExporter
    from nbconvert.filters import strip_ansi

    body, resources = MarkdownExporter().from_filename(str(EXECUTED if EXECUTED.is_file() else ROOT / NOTEBOOK))
    pictures |= resources["outputs"]
    return str(strip_ansi(body))  # the colours of a terminal


def place(path: str) -> str:
    """Where a file of the repository stands on the site."""
    return MOVED.get(path, path.removeprefix("docs/"))


def target(link: str, page: str) -> str:
    """The file of the repository that a page's link leads to; of a folder its README.md."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return posixpath.join(path, "README.md") if (ROOT / path).is_dir() else path


def linked(text: str, page: str) -> str:
    """A page's text with its links as they are on the site, without the markers of the tables."""
    here = posixpath.dirname(place(page)) or "."

    def moved(found: re.Match[str]) -> str:
        return posixpath.relpath(place(target(found["path"], page)), here) + (found["heading"] or "")

    return _LINK.sub(moved, _TABLE_MARKER.sub("", text))


def linked_files(pages: Iterable[str]) -> Iterable[str]:
    """Every file that pages link to, by its place in the repository."""
    for page in pages:
        for found in _LINK.finditer(_text(page)):
            if (ROOT / (path := target(found["path"], page))).is_file():
                yield path


def _text(path: str) -> str:
    return (ROOT / path).read_text("utf-8")
