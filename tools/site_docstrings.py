"""The project's docstrings as Markdown: an extension of griffe, which reads them for the site.

A docstring says of its parameters `name: what it is.`, one after the other, lines after the first indented. On the
site each becomes an item of a list.
"""

import re

from griffe import Extension, Object

# A line, or the start of a sentence in it, that explains a name; the lines that continue it are indented.
_ITEM = re.compile(r"^(?P<names>[a-z_]\w*(?:, [a-z_]\w*)*): (?P<text>.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)


def as_markdown(docstring: str) -> str:
    """The docstring with its explained names as a list."""

    def item(found: re.Match[str]) -> str:
        names = ", ".join(f"`{name}`" for name in found["names"].split(", "))
        return f"\n- {names}: {' '.join(found['text'].split())}\n"

    return re.sub(r"\n{3,}", "\n\n", _ITEM.sub(item, docstring))


class Docstrings(Extension):
    """Rewrites every docstring of the package as it is read."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
