"""What a user sees of the benchmark."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..cli.output.answers import setting
from ..cli.output.progress import progress_bar
from ..measure.comparison import BASELINE, OURS, Method
from ..measure.methods import compiled_name
from ..measure.provenance import provenance
from ..pairs import Pair
from .bench import measure
from .bench_plots import save_plots


def show(
    pair: Pair,
    prompts: Sequence[torch.Tensor],
    methods: dict[str, Method],
    facts: dict[str, Any],
    max_new_tokens: int,
    repeats: int,
    plots: Path | None,
    as_json: bool,
) -> None:
    """Measures, prints the table, saves the figures; the last line printed is one JSON document.

    facts: what the methods were made of, for the document. `replay`: the name of the record that the drafts were taken
    from, or None. `compiled`: what came of compiling plain `generate`, or None where that was not asked for;
    `compiled_hf`: the same of transformers' other methods, by name.
    """
    console = Console(quiet=as_json)
    with progress_bar() as progress:
        task = progress.add_task("Timing", total=len(methods) * repeats * len(prompts))
        measured = measure(
            pair.target, pair.drafter, methods, prompts, max_new_tokens, repeats, lambda: progress.advance(task)
        )
    document = (
        measured
        | pair.names
        | facts
        | {"max_new_tokens": max_new_tokens, "repeats": repeats}
        | setting(pair.target)
        | provenance(pair.target.device)
    )
    if facts["replay"] is not None:
        console.print(f"REPLAY: the forwards are real, the drafts and what is accepted come from {facts['replay']}.")
    console.print(_table(document))
    for line in (_verdict(document), *_compilation(document), _machine(document)):
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
    """A method's row: name, tokens/s, speedup, its interval, tokens per forward, time split."""
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
    return (
        f"Over the fastest of transformers' own methods: {document['default_speedup_over_best_hf']:.2f}x for {OURS}, "
        f"{document['speedup_over_best_hf']:.2f}x for the fastest of ours."
    )


def _compilation(document: dict[str, Any]) -> list[str]:
    plain = {compiled_name(BASELINE): document["compiled"]} if document["compiled"] else {}
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
        f"Verifying so many draft tokens costs, in such forwards, {ratios}."
    )
