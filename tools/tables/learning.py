"""What learning did to the bundled drafter: by kind of prompt, by quarter of long answers, or by the clock."""

from typing import Any

from . import markdown, result


def table(part: str) -> str:
    if part == "clock":
        return _clock()
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


def _clock() -> str:
    document = result("results/learning_clock.json")
    titles = ("requests", "number", "tokens", "speed", "speed, second half", "tokens per round", "time for steps")
    rows = [
        (
            name,
            row["requests"],
            row["tokens"],
            _gain(row["speed"]),
            _gain(row["speed_second_half"]),
            _gain(row["tokens_per_round"]),
            f"{row['share_of_time']:.0%}",
        )
        for name, row in document["kinds"].items()
    ]
    return markdown(titles, rows)
