"""What a user sees of the benchmark."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from ..pair import Pair
from ..progress import progress_bar
from ..provenance import provenance
from ..showcase import setting
from .plots import save_plots
from .run import arms, measure


def show(
    pair: Pair,
    prompts: Sequence[torch.Tensor],
    options: dict[str, Any],
    assistant: PreTrainedModel | None,
    max_new_tokens: int,
    repeats: int,
    replayed: str | None,
    plots: Path | None,
    as_json: bool,
) -> None:
    """Measures, prints the table, saves the figures; the last line printed is one JSON document.

    replayed: the name of the record that the drafts were taken from, if they were.
    """
    console = Console(quiet=as_json)
    methods = arms(pair.target, pair.drafter, options, assistant)
    with progress_bar() as progress:
        task = progress.add_task("Timing", total=len(methods) * repeats * len(prompts))
        measured = measure(
            pair.target, pair.drafter, methods, prompts, max_new_tokens, repeats, lambda: progress.advance(task)
        )
    document = (
        measured
        | pair.names
        | {"replay": replayed, "options": options, "max_new_tokens": max_new_tokens, "repeats": repeats}
        | setting(pair.target)
        | provenance(pair.target.device)
    )
    if replayed is not None:
        console.print(f"REPLAY: the forwards are real, the drafts and what is accepted come from {replayed}.")
    console.print(_table(document))
    console.print(_machine(document))
    if plots is not None:
        for path in save_plots(document, plots):
            console.print(f"wrote {path}")
    print(json.dumps(document))


def _table(document: dict[str, Any]) -> Table:
    title = "replayed acceptance" if document["replay"] else None
    table = Table("method", "tokens/s", "speedup", "95 %", "mean acceptance length", "draft/verify/host", title=title)
    for record in document["results"]:
        length, share = record["mean_acceptance_length"], record.get("time_share")
        table.add_row(
            record["method"],
            f"{record['tokens_per_second']:.1f}",
            f"{record['speedup']:.2f}x",
            f"{record['speedup_low']:.2f} to {record['speedup_high']:.2f}",
            "" if length is None else f"{length:.2f}",
            "" if share is None else " / ".join(f"{100 * value:.0f} %" for value in share.values()),
        )
    return table


def _machine(document: dict[str, Any]) -> str:
    floor, verify = document["floor"], document["costs_ms"]["verify"]
    plain = verify["0"]
    ratios = ", ".join(f"{count}: {milliseconds / plain:.2f}x" for count, milliseconds in verify.items())
    return (
        f"A forward of one token takes {floor['forward_ms']:.1f} ms, {floor['forward_over_floor']:.1f} times what its "
        f"{floor['bytes_per_forward'] / 1e6:.0f} MB need at the measured {floor['bandwidth_gb_per_second']:.0f} GB/s. "
        f"Verifying so many draft tokens costs, in such forwards, {ratios}."
    )
