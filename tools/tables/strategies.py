"""Speedups of the strategies by kind of prompt, over plain decoding with packed weights."""

from typing import Any

from . import markdown, result

TITLES = {
    "plain, ordinary weights": "plain, weights not packed",
    "prompt_lookup": "transformers' prompt lookup",
    "default": "default rule",
    "tail": "tail of 8",
    "tree": "tree of 16",
    "goodput, chains": "goodput, chains only",
    "goodput": "goodput",
}


def table() -> str:
    document = result("results/strategies.json")
    rows = [(kind, *(_speedup(methods[name]) for name in TITLES)) for kind, methods in document["kinds"].items()]
    return markdown(("prompts", *TITLES.values()), rows)


def _speedup(row: dict[str, Any]) -> str:
    return f"{row['speedup']:.2f}x ({row['low']:.2f} to {row['high']:.2f})"
