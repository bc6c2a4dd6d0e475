"""What a user sees of a target and drafter pair: answers as they are written, then the measured comparison."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...decoding.stats import SpecDecodingStats
from ...drafters import DiffusionDrafter
from ...measure.comparison import BASELINE, OURS, MethodResult, compare, default_methods, summary
from ...measure.provenance import setting
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
    methods = default_methods(target, drafter, options)
    measured = setting(target) | {"max_new_tokens": max_new_tokens, "repeats": repeats}
    is_exact = target.dtype == torch.float32
    with progress_bar() as on_progress:
        results = compare(methods, encoded, max_new_tokens, repeats, lambda done: on_progress("Timing", done))
        exact_results = results
        if not is_exact:
            target.float()
            checked = {name: methods[name] for name in (BASELINE, OURS)}
            exact_results = compare(
                checked, encoded, max_new_tokens, 1, lambda done: on_progress("Checking in float32", done)
            )
    exact = sum(exact_results[-1].identical)
    records = summary(results)
    console.print(_table(records))
    margins = [margin for result in results for margin in result.margins]
    if margins:
        console.print(f"Where texts part, the target's two best logits are at most {max(margins):.3f} apart.")
    console.print(f"In float32, {exact} of {len(prompts)} answers are identical to plain generate, token by token.")
    advice = _advice(results, records)
    for line in advice:
        console.print(f"- {line}", markup=False, highlight=False)
    print(json.dumps({"results": records, "identical_in_float32": exact, "advice": advice} | measured))


def _advice(results: Sequence[MethodResult], records: Sequence[dict[str, Any]]) -> list[str]:
    """What the numbers of ours say, beside those of the best other method."""
    speedups = {record["method"]: record["speedup"] for record in records}
    ours = speedups.pop(OURS)
    stats = next(result.stats for result in results if result.name == OURS)
    return SpecDecodingStats.total(stats).advice(ours, max(speedups.values()))


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


def _table(records: Sequence[dict[str, Any]]) -> Table:
    table = Table("method", "tokens/s", "speedup", "mean acceptance length", "identical")
    for record in records:
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
