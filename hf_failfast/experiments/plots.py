"""One figure per experiment, drawn from its stored rows: `matplotlib`, extra `plots`."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tables import Column, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Draws rows into an empty figure.
Draw = Callable[["Figure", Sequence[Row]], None]

# Text stays text: the file is a quarter of the size, and the reader's own font shows it.
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
_ACCEPTED, _REJECTED, _THIRD, _GREY, _FAINT = "#2f7d5b", "#c2603f", "#3d64a8", "#8a8a8a", "#ecd6cb"


def require_matplotlib() -> None:
    """Raises ImportError saying what to install; called before anything slow."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            'Plots need matplotlib: pip install "hf_failfast[plots]", or in a checkout pip install -e ".[plots]".'
        )


def save_plot(draw: Draw, document: Row, path: Path) -> None:
    """Draws an experiment's figure into an SVG file, the same bytes for the same rows."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": document["experiment"]}):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        draw(figure, document["rows"])
        figure.savefig(path, metadata={"Date": None})


def _of(rows: Sequence[Row], *keys: str) -> list[list[Any]]:
    """One list per key, of the rows that have them all as numbers."""
    known = [row for row in rows if all(isinstance(row.get(key), (int, float)) for key in keys)]
    return [[row[key] for row in known] for key in keys]


def _speed_and_length(axes: Sequence["Axes"], rows: Sequence[Row], key: str, label: str, colour: str) -> None:
    """The measured speedup with its interval, and beside it the mean acceptance length."""
    speed, length = axes
    speed.plot(*_of(rows, key, "speedup"), "o-", color=colour, label=label, markersize=4)
    x, low, high = _of(rows, key, "speedup_ci95_low", "speedup_ci95_high")
    speed.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    length.plot(*_of(rows, key, "mean_acceptance_length"), "s--", color=colour, label=label)


def _two_axes(figure: "Figure", x: str) -> tuple["Axes", "Axes"]:
    speed, length = figure.subplots(1, 2)
    speed.axhline(1, color=_GREY, linewidth=0.8)
    for axes, title in ((speed, "speedup over plain decoding"), (length, "mean acceptance length")):
        axes.set(xlabel=x, title=title)
    return speed, length


def sweep(axis: Column) -> Draw:
    """Speedup and mean acceptance length over the values of one column."""

    def draw(figure: "Figure", rows: Sequence[Row]) -> None:
        speed, length = _two_axes(figure, axis.title)
        _speed_and_length((speed, length), rows, axis.key, "measured", _ACCEPTED)
        speed.plot(*_of(rows, axis.key, "modelled_speedup"), ":", color=_THIRD, label="modelled")
        speed.legend(frameon=False)

    return draw


def bars(column: Column) -> Draw:
    """Speedup and mean acceptance length of methods that no number tells apart."""

    def draw(figure: "Figure", rows: Sequence[Row]) -> None:
        names = [column.cell(row) for row in rows]
        speed, length = figure.subplots(1, 2, sharey=True)
        speed.barh(names, [row["speedup"] for row in rows], color=_ACCEPTED)
        speed.axvline(1, color=_GREY, linewidth=0.8)
        speed.set(title="speedup over plain decoding")
        speed.invert_yaxis()
        length.barh(names, [row["mean_acceptance_length"] for row in rows], color=_THIRD)
        length.set(title="mean acceptance length")

    return draw


def baselines(figure: "Figure", rows: Sequence[Row]) -> None:
    speed, length = _two_axes(figure, "draft length n")
    for drafter, colour in {"autoregressive": _THIRD, "diffusion, fixed": _REJECTED}.items():
        of_drafter = [row for row in rows if row["drafter"] == drafter]
        _speed_and_length((speed, length), of_drafter, "n", drafter, colour)
    for row in rows:
        if row["drafter"] == "FailFast":
            speed.axhline(row["speedup"], color=_ACCEPTED, label="FailFast")
            length.axhline(row["mean_acceptance_length"], color=_ACCEPTED)
    speed.legend(frameon=False)


def specdiff(figure: "Figure", rows: Sequence[Row]) -> None:
    for axes, key in zip(figure.subplots(1, 2), ("speedup", "mean_acceptance_length"), strict=True):
        for steps in sorted({row["T"] for row in rows}):
            of_steps = [row for row in rows if row["T"] == steps]
            axes.plot(*_of(of_steps, "gamma", key), "o-", label=f"T = {steps}")
        axes.set(xlabel="gamma", title=key.replace("_", " "))
    axes.legend(frameon=False)


def confidence(figure: "Figure", rows: Sequence[Row]) -> None:
    histogram, reliability = figure.subplots(1, 2)
    low, high, accepted, rejected = _of(rows, "low", "high", "accepted", "rejected")
    middle = [sum(ends) / 2 for ends in zip(low, high, strict=True)]
    width = 0.9 * (high[0] - low[0])
    histogram.bar(middle, accepted, width, color=_ACCEPTED, label="accepted")
    histogram.bar(middle, rejected, width, accepted, color=_REJECTED, label="rejected")
    histogram.set(xlabel="confidence", title="judged draft tokens")
    histogram.legend(frameon=False)
    reliability.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8)
    reliability.plot(*_of(rows, "mean_confidence", "accepted_share"), "o-", color=_ACCEPTED)
    reliability.set(xlabel="mean confidence", title="share accepted", xlim=(0, 1), ylim=(0, 1))


def difficulty(figure: "Figure", rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    axes.bar([f"> {row['longer_than']}" for row in rows], [100 * row["share"] for row in rows], color=_ACCEPTED)
    axes.set(xlabel="length of the run of right tokens", title="share of all tokens, %")


def trajectory(figure: "Figure", rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    x = range(len(rows))
    axes.bar(x, [row["drafted"] for row in rows], color=_FAINT, width=1, label="drafted, not accepted")
    axes.bar(x, [row["accepted"] for row in rows], color=_ACCEPTED, width=1, label="accepted")
    for index in (index for index in x if rows[index]["round"] == 0 and index):
        axes.axvline(index - 0.5, color=_GREY, linewidth=0.8)
    axes.set(xlabel="round (lines part the prompts)", ylabel="draft tokens")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
