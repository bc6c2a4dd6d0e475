"""`python -m tools.tables`: writes every table; with `--check`, names the pages that differ and exits with 1."""

import sys

from . import ROOT, filled, pages


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        sys.exit(f"usage: python -m tools.tables [--check], but got {arguments}")
    old = {page: page.read_text(encoding="utf-8") for page in pages()}
    new = {page: filled(text) for page, text in old.items()}
    stale = [page for page in old if old[page] != new[page]]
    for page in stale:
        if arguments:
            print(f"{page.relative_to(ROOT)} differs from its results: make tables", file=sys.stderr)
        else:
            page.write_text(new[page], encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
    return int(bool(stale and arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
