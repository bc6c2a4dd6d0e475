"""The benchmark's figures: `matplotlib`, extra `plots`."""

from pathlib import Path
from typing import Any


def save_plots(document: dict[str, Any], folder: Path) -> list[Path]:
    """Speedup by arm, cost of verifying, time split and accepted lengths, as SVG files; returns their paths."""
    from matplotlib.figure import Figure

    title = "replayed acceptance" if document["replay"] else ""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in {"speedup": _speedup, "verify": _verify, "time": _time, "accepted": _accepted}.items():
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        draw(document, axes)
        axes.spines[["top", "right"]].set_visible(False)
        paths.append(folder / f"{name}.svg")
        figure.savefig(paths[-1], metadata={"Date": None})
    return paths


def _ours(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [record for record in document["results"] if "time_share" in record]


def _speedup(document: dict[str, Any], axes: Any) -> None:
    records = document["results"][::-1]
    speedup = [record["speedup"] for record in records]
    low = [max(record["speedup"] - record["speedup_low"], 0) for record in records]
    high = [max(record["speedup_high"] - record["speedup"], 0) for record in records]
    axes.barh([record["method"] for record in records], speedup, xerr=[low, high], color="#3d64a8")
    axes.axvline(1.0, color="#8a8a8a", linewidth=1)
    axes.set_xlabel("speedup over plain generate (95 % interval over prompts)")


def _verify(document: dict[str, Any], axes: Any) -> None:
    longest = max(map(int, document["costs_ms"]["verify"]))  # the drafter's costs go on to the length of a prompt
    for name, marker in (("verify", "o"), ("draft", "s")):
        points = {int(count): value for count, value in document["costs_ms"][name].items() if int(count) <= longest}
        axes.plot(list(points), list(points.values()), marker=marker, label=name)
    axes.set_xlabel("draft tokens")
    axes.set_ylabel("ms of a round")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _time(document: dict[str, Any], axes: Any) -> None:
    records = _ours(document)[::-1]
    left = [0.0] * len(records)
    for name in ("draft", "verify", "host"):
        shares = [record["time_share"][name] for record in records]
        axes.barh([record["method"] for record in records], shares, left=left, label=name)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axes.set_xlabel("share of the time")
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _accepted(document: dict[str, Any], axes: Any) -> None:
    for record in _ours(document):
        counts = record["accepted_lengths"]
        axes.plot(range(len(counts)), [count / sum(counts) for count in counts], marker="o", label=record["method"])
    axes.set_xlabel("accepted draft tokens in a round")
    axes.set_ylabel("share of the rounds")
    axes.legend(frameon=False)
