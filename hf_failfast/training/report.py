"""The report of a finished run: one picture of its losses, its acceptance and its confidence."""

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .atomic_files import replacing

LOG = "train_log.jsonl"
PLOT = "report.png"


def write_report(folder: Path) -> None:
    """Draws `report.png` from the run's log."""
    log = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    _losses(axes[0, 0], log)
    _acceptance_length(axes[0, 1], log)
    _accuracy(axes[1, 0], log[-1]["held_out"])
    _calibration(axes[1, 1], log[-1]["held_out"]["calibration"])
    with replacing(folder / PLOT) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _losses(axes: Axes, log: list[dict[str, Any]]) -> None:
    records = [record for record in log if record["losses"]]
    for name in records[-1]["losses"]:
        if name != "tokens":
            axes.plot(
                [record["step"] for record in records], [record["losses"][name] for record in records], label=name
            )
    axes.set(title="Loss parts, mean since the evaluation before", xlabel="step")
    axes.legend(fontsize="x-small")


def _acceptance_length(axes: Axes, log: list[dict[str, Any]]) -> None:
    steps = [record["step"] for record in log]
    axes.plot(steps, [record["held_out"]["mean_acceptance_length"] for record in log], marker=".")
    decoding = [(record["step"], record["decoding"]) for record in log if "decoding" in record]
    if decoding:
        axes.plot([step for step, _ in decoding], [d["mean_acceptance_length"] for _, d in decoding], marker=".")
        low, high = ([d[name] for _, d in decoding] for name in ("low", "high"))
        axes.fill_between([step for step, _ in decoding], low, high, alpha=0.2)
    axes.legend(["held out, teacher-forced", "decoding of unseen prompts"][: len(axes.lines)])
    axes.set(title="Mean acceptance length (with the bonus token)", xlabel="step", ylabel="tokens per draft")


def _accuracy(axes: Axes, held_out: dict[str, Any]) -> None:
    accuracy = held_out["accuracy_by_position"]
    axes.bar(range(1, len(accuracy) + 1), accuracy, label="right")
    axes.plot(range(1, len(accuracy) + 1), held_out["acceptance_by_position"], "k.-", label="accepted")
    axes.set(title="Held-out draft tokens by position", xlabel="draft position", ylabel="share", ylim=(0, 1))
    axes.legend()


def _calibration(axes: Axes, bins: list[dict[str, float]]) -> None:
    middle = [(row["from"] + row["to"]) / 2 for row in bins]
    width = bins[0]["to"] - bins[0]["from"]
    accepted, rejected = ([row[name] for row in bins] for name in ("accepted", "rejected"))
    axes.bar(middle, accepted, width, label="accepted")
    axes.bar(middle, rejected, width, bottom=accepted, label="rejected", alpha=0.5)
    axes.set(title="Confidence of accepted and rejected draft tokens", xlabel="confidence", ylabel="tokens")
    share = axes.twinx()
    rows = [(x, a / (a + r)) for x, a, r in zip(middle, accepted, rejected, strict=True) if a + r]
    share.plot([x for x, _ in rows], [y for _, y in rows], "k.-")
    share.plot([0, 1], [0, 1], "k:")
    share.set(ylabel="share accepted", ylim=(0, 1))
    axes.legend(loc="upper left")
