"""What a user sees of the benchmark: the table, the lines below it, and the figures (`matplotlib`, extra `plots`)."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ...measure.methods import title
from ...pairs import weights_note


def show(document: dict[str, Any], plots: Path | None, as_json: bool) -> None:
    """Prints the table and what it means, and saves the figures. The last line printed is the document; with `as_json`
    it is the only one."""
    console = Console(quiet=as_json)
    if document["replay"] is not None:
        record = document["replay"]
        console.print(f"REPLAY: the forwards are real, the drafts and what is accepted come from {record}.")
    console.print(_table(document))
    found = (_verdict(document), *_identical(document), *_compilation(document), _machine(document))
    for line in (*weights_note(document), *found):
        console.print(line, markup=False, highlight=False)
    if plots is not None:
        for path in save_plots(document, plots):
            console.print(f"wrote {path}")
    print(json.dumps(document))


def _table(document: dict[str, Any]) -> Table:
    title = "replayed acceptance" if document["replay"] else None
    table = Table("method", "tokens/s", "speedup", "95 %", "mean acceptance length", "draft/verify/host", title=title)
    for record in document["results"]:
        table.add_row(*cells(record))
    return table


def cells(record: dict[str, Any]) -> tuple[str, ...]:
    """A method's row: name, tokens/s, speedup, its interval, mean acceptance length, time split."""
    length, share = record["mean_acceptance_length"], record.get("time_share")
    return (
        record["method"],
        f"{record['tokens_per_second']:.1f}",
        f"{record['speedup']:.2f}x",
        f"{record['speedup_low']:.2f} to {record['speedup_high']:.2f}",
        "" if length is None else f"{length:.2f}",
        "" if share is None else " / ".join(f"{100 * value:.0f} %" for value in share.values()),
    )


def _verdict(document: dict[str, Any]) -> str:
    fastest = document["fastest_plain"]
    over_plain = ""
    if fastest != title("plain"):
        over_plain = (
            f" Over the fastest plain decoding, {fastest}: {document['default_speedup_over_fastest_plain']:.2f}x and "
            f"{document['speedup_over_fastest_plain']:.2f}x."
        )
    return (
        "Over the fastest of transformers' own methods: "
        f"{document['default_speedup_over_best_hf']:.2f}x for {title('failfast')}, "
        f"{document['speedup_over_best_hf']:.2f}x for the fastest of ours.{over_plain}"
    )


def _identical(document: dict[str, Any]) -> list[str]:
    """How many answers are plain decoding's: of the first of ours, and with exact forwards."""
    ours = next(each for each in document["results"] if each["method"] == title("failfast"))
    lines = [f"{ours['identical']} of {ours['prompts']} answers of {ours['method']} are plain generate's."]
    exact = document.get("exact")
    if exact is None:
        return lines
    if exact["refused"] is not None:
        return [*lines, exact["refused"]]
    without, drafted, plain = exact["results"]
    return [
        *lines,
        f"With exact forwards {drafted['identical']} of {drafted['prompts']} are those of the same forwards without "
        f"drafts, at {drafted['speedup'] / plain['speedup']:.2f}x the speed of plain generate; without drafts these "
        f"forwards run at {without['speedup'] / plain['speedup']:.2f}x.",
    ]


def _compilation(document: dict[str, Any]) -> list[str]:
    plain = {title("plain", is_compiled=True): document["compiled"]} if document["compiled"] else {}
    return [
        f"{name} was not timed: {found['error']}"
        if "error" in found
        else f"{name}: {found['first_call_seconds']:.0f} s to compile."
        for name, found in (plain | document["compiled_hf"]).items()
    ]


def _machine(document: dict[str, Any]) -> str:
    floor, verify = document["floor"], document["costs_ms"]["verify"]
    plain = verify["0"]
    ratios = ", ".join(f"{count}: {milliseconds / plain:.2f}x" for count, milliseconds in verify.items())
    return (
        f"A forward of one token takes {floor['forward_ms']:.1f} ms, {floor['forward_over_floor']:.1f} times what its "
        f"{floor['bytes_per_forward'] / 1e6:.0f} MB need at the measured {floor['bandwidth_gb_per_second']:.0f} GB/s. "
        f"Verifying a draft costs, in such forwards by its tokens, {ratios}."
    )


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
