"""What a user sees of a target and drafter pair: answers as they are written, then the measured comparison."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ...decoding.stats import SpecDecodingStats
from ...drafters import BUNDLED_DRAFTER
from ...engine.positions import position_table
from ...experiments.bench import fastest_plain, interval, row
from ...measure.methods import Method, drafted, plain_forms, plain_of, prompt_lookup
from ...measure.provenance import setting
from ...measure.records import SpeedRecord
from ...measure.timing import Prompts, time_answers
from ...pairs import Pair, encode_prompt, weights_note
from .progress import progress_bar
from .streaming import ACCEPTED_STYLE, ColourStreamer

SHOWN_CHARACTERS = 400  # of a prompt


def stream(
    pair: Pair,
    prompts: Sequence[str],
    options: dict[str, Any],
    max_new_tokens: int,
    as_json: bool = False,
    is_last: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Prints every answer as it is written, and returns what `--json` holds of them; with `is_last` it is printed.

    temperature: 0 for greedy answers. Raises ValueError before the first answer if a prompt is too long.
    """
    console = Console(quiet=as_json, highlight=False)
    encoded = _encoded(pair, prompts)
    arguments: dict[str, Any] = options | {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature:
        torch.manual_seed(seed)
        arguments["temperature"] = temperature
    if console.is_terminal:
        console.print(f"[{ACCEPTED_STYLE}]Drafted and accepted[/], and the target's own tokens:")
    answers = []
    for prompt, input_ids in zip(prompts, encoded, strict=True):
        console.print(f"\n> {_shown(prompt)}", style="bold", markup=False, soft_wrap=True)
        output = pair.target.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            assistant_model=pair.drafter,
            custom_generate="hf_failfast",
            streamer=ColourStreamer(pair.tokenizer, console, console.width if console.is_terminal else None),
            return_dict_in_generate=True,
            **arguments,
        )
        stats: SpecDecodingStats = output["speculation"]
        ids = output.sequences[0, input_ids.shape[1] :]
        text = pair.tokenizer.decode(ids, skip_special_tokens=True)
        answers.append({"prompt": prompt, "text": text, "tokens": len(ids), "speculation": stats.as_dict()})
        counts = f"{len(ids)} tokens in {stats.rounds} rounds, {stats.accepted} of them drafted"
        console.print(counts, style="dim", soft_wrap=True)
    document = {"answers": answers}
    if is_last and as_json:
        facts = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "options": options}
        print(json.dumps(document | pair.names | facts | setting(pair.target)))
    return document


def _shown(prompt: str) -> str:
    """Of a long prompt its beginning."""
    if len(prompt) <= SHOWN_CHARACTERS:
        return prompt
    return f"{prompt[:SHOWN_CHARACTERS]}... ({len(prompt)} characters)"


def _encoded(pair: Pair, prompts: Sequence[str]) -> list[torch.Tensor]:
    """The prompts' ids. Raises ValueError if the target cannot take one of them."""
    encoded = [encode_prompt(pair.tokenizer, prompt).to(pair.target.device) for prompt in prompts]
    positions = position_table(pair.target.config.get_text_config(decoder=True))
    longest = max(ids.shape[1] for ids in encoded)
    if positions is not None and longest > positions:
        raise ValueError(f"A prompt has {longest} tokens, but the target takes at most {positions}: shorten it.")
    return encoded


def compare(
    pair: Pair,
    prompts: Sequence[str],
    options: dict[str, Any],
    max_new_tokens: int,
    repeats: int,
    as_json: bool,
) -> dict[str, Any]:
    """Times the methods, prints what was found unless `as_json`, and returns it.

    Below float32 the timed texts may part where rounding decides, so the target is then moved to float32 in place
    and every answer compared once more: that is the check of losslessness.
    """
    console = Console(quiet=as_json, highlight=False)
    target, drafter = pair.target, pair.drafter
    config = drafter.config.with_options(options)
    ours = drafted(drafter, config)
    methods = [plain_of(config), *plain_forms(target.device), prompt_lookup(), ours]
    asked = [Prompts.greedy(ids, max_new_tokens) for ids in _encoded(pair, prompts)]
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
    rows = [row(name, found) | interval(found) for name, found in records.items()]
    is_tuned = not options and pair.names["drafter"] == BUNDLED_DRAFTER.name
    advice = _advice(records[methods[-1].title], rows, measured, is_tuned)
    console.print(_table(rows, exact))
    for line in (
        *weights_note(pair.names),
        *_over_plain(rows),
        *_verdict(rows[-1], exact, measured["dtype"]),
        *(f"- {each}" for each in advice),
    ):
        console.print(line, markup=False)
    return {"results": rows, "identical_in_float32": exact, "advice": advice} | measured


def _over_plain(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The speedup of ours, the last row, over both forms of plain decoding, where `generate` is not the fastest."""
    plain, ours, fastest = rows[0], rows[-1], fastest_plain(rows)
    if fastest is plain:
        return []
    ratio = ours["speedup"] / fastest["speedup"]
    return [
        f"{ours['method']}: {ours['speedup']:.2f}x over {plain['method']}, {ratio:.2f}x over the fastest plain "
        f"decoding, {fastest['method']}."
    ]


def _verdict(ours: dict[str, Any], exact: int, dtype: str) -> list[str]:
    """What was found of losslessness, in plain words."""
    total, margin = ours["prompts"], ours["largest_margin_at_first_difference"]
    if exact < total:
        return [f"In float32 {total - exact} of {total} answers differ from plain generate's: please report it."]
    equal = "every answer is plain generate's, token by token"
    if margin is None:
        return [f"In float32{'' if dtype == 'float32' else f' and in {dtype}'} {equal}."]
    return [
        f"In float32 {equal}. In {dtype} {ours['identical']} of {total} are; the others first differ at a near tie "
        f"(the target's two best logits are at most {margin:.3f} apart), which rounding decides."
    ]


def _advice(
    records: Sequence[SpeedRecord], rows: Sequence[dict[str, Any]], measured: dict[str, Any], is_tuned: bool
) -> list[str]:
    """What the numbers of ours, the last row, say beside those of the best other method."""
    *others, ours = (each["speedup"] for each in rows)
    total = SpecDecodingStats.total([record.stats for record in records if record.stats])
    return total.advice(ours, max(others), dtype=measured["dtype"], device=measured["device"], is_tuned=is_tuned)


def _table(rows: Sequence[dict[str, Any]], exact: int) -> Table:
    table = Table("method", "tokens/s", "speedup", "95 %", "tokens per round", "identical in float32")
    for record in rows:
        length = record["mean_acceptance_length"]
        table.add_row(
            record["method"],
            f"{record['tokens_per_second']:.1f}",
            f"{record['speedup']:.2f}x",
            f"{record['speedup_low']:.2f} to {record['speedup_high']:.2f}",
            "" if length is None else f"{length:.2f}",
            f"{exact} of {record['prompts']}" if record is rows[-1] else "",
        )
    return table
