"""What a user sees of a target and drafter pair: answers as they are written, then the measured comparison."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...decoding.stats import SpecDecodingStats
from ...drafters import DiffusionDrafter
from ...experiments.bench import fastest_plain, row
from ...measure.methods import PLAIN, Method, drafted, plain_forms, prompt_lookup
from ...measure.provenance import setting
from ...measure.records import SpeedRecord
from ...measure.timing import Prompts, time_answers
from ...pairs import encode_prompt
from .progress import progress_bar
from .streaming import ACCEPTED_STYLE, ColourStreamer


def show(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drafter: DiffusionDrafter,
    prompts: Sequence[str],
    options: dict[str, Any],
    max_new_tokens: int,
    repeats: int,
    as_json: bool = False,
) -> None:
    """Streams every answer, then times the methods. The last line printed is one JSON document; with `as_json` it is
    the only one.

    Below float32 the timed texts may part where rounding decides, so the target is then moved to float32 in place
    and every answer compared once more: that is the check of losslessness.
    """
    console = Console(quiet=as_json)
    encoded = [encode_prompt(tokenizer, prompt).to(target.device) for prompt in prompts]
    _stream(
        target,
        tokenizer,
        drafter,
        dict(zip(prompts, encoded, strict=True)),
        options | {"max_new_tokens": max_new_tokens, "do_sample": False},
        console,
    )
    ours = drafted(drafter, drafter.config.with_options(options))
    methods = [PLAIN, *plain_forms(target.device), prompt_lookup(), ours]
    asked = [Prompts.greedy(ids, max_new_tokens) for ids in encoded]
    measured = setting(target) | {"max_new_tokens": max_new_tokens, "repeats": repeats}
    is_exact = target.dtype == torch.float32
    with progress_bar() as on_progress:

        def time(methods: Sequence[Method], repeats: int, title: str) -> dict[str, list[SpeedRecord]]:
            arms = {method.title: partial(method.run, target) for method in methods}
            return time_answers(arms, target, asked, repeats, on_progress=partial(on_progress, title))

        records = checked = time(methods, repeats, "Timing")
        if not is_exact:
            target.float()
            checked = time([methods[0], methods[-1]], 1, "Checking in float32")
    exact = sum(record.identical is True for record in checked[methods[-1].title])
    rows = [row(name, found) for name, found in records.items()]
    console.print(_table(rows))
    if (fastest := fastest_plain(rows)) is not rows[0]:
        over_fastest = rows[-1]["speedup"] / fastest["speedup"]
        console.print(
            f"{rows[-1]['method']}: {rows[-1]['speedup']:.2f}x over {rows[0]['method']}, {over_fastest:.2f}x over the "
            f"fastest plain decoding, {fastest['method']}."
        )
    margins = [margin for each in rows if (margin := each["largest_margin_at_first_difference"]) is not None]
    if margins:
        console.print(f"Where texts part, the target's two best logits are at most {max(margins):.3f} apart.")
    console.print(f"In float32, {exact} of {len(prompts)} answers are identical to plain generate, token by token.")
    advice = _advice(records[methods[-1].title], rows)
    for line in advice:
        console.print(f"- {line}", markup=False, highlight=False)
    print(json.dumps({"results": rows, "identical_in_float32": exact, "advice": advice} | measured))


def _advice(records: Sequence[SpeedRecord], rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the numbers of ours, the last row, say beside those of the best other method."""
    *others, ours = (each["speedup"] for each in rows)
    return SpecDecodingStats.total([record.stats for record in records if record.stats]).advice(ours, max(others))


def _stream(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drafter: DiffusionDrafter,
    prompts: dict[str, torch.Tensor],
    arguments: dict[str, Any],
    console: Console,
) -> None:
    streamer = ColourStreamer(tokenizer, console)
    console.print(f"[{ACCEPTED_STYLE}]Drafted and accepted[/], and the target's own tokens:")
    for prompt, input_ids in prompts.items():
        console.print(f"\n> {prompt}", style="bold", markup=False, soft_wrap=True)
        target.generate(
            input_ids, assistant_model=drafter, custom_generate="hf_failfast", streamer=streamer, **arguments
        )


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("method", "tokens/s", "speedup", "mean acceptance length", "identical")
    for record in rows:
        length = record["mean_acceptance_length"]
        is_identical = record["identical"] == record["prompts"]
        table.add_row(
            record["method"],
            f"{record['tokens_per_second']:.1f}",
            f"{record['speedup']:.2f}x",
            "" if length is None else f"{length:.2f}",
            "yes" if is_identical else f"{record['identical']} of {record['prompts']}",
        )
    return table
