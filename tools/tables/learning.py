"""What learning did to the bundled drafter: by kind of prompt, or by quarter of long answers."""

from typing import Any

from . import markdown, result


def table(part: str) -> str:
    document = result("results/learning.json")
    if part == "kinds":
        titles = ("learned from", "requests", "without", "with", "change", "another kind afterwards")
        return markdown(titles, [_kind(name, row) for name, row in document["kinds"].items()])
    quarters = enumerate(document["long_answers"]["quarters"], start=1)
    titles = ("quarter", "without", "with", "change")
    return markdown(titles, [(str(number), *_pair(row), f"{row['gain']['ratio']:.2f}x") for number, row in quarters])


def _kind(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    return name, str(row["prompts"]), *_pair(row), _gain(row["gain"]), _gain(row["other_kind"]["gain"])


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    return f"{row['without']['tokens_per_round']:.2f}", f"{row['with']['tokens_per_round']:.2f}"


def _gain(gain: dict[str, float]) -> str:
    return f"{gain['ratio']:.2f}x ({gain['low']:.2f} to {gain['high']:.2f})"
