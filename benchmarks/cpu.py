"""What packed weights and grouped attention bring on this CPU: forwards of several widths, then answers.

    OMP_WAIT_POLICY=passive python benchmarks/cpu.py

Two copies of SmolLM2-135M-Instruct and the bundled drafter side by side in one process, one of them packed.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from store import RESULTS, store

from hf_failfast import grouped_attention, prepack
from hf_failfast.engine.runner import EagerRunner, Forward
from hf_failfast.engine.window import Window
from hf_failfast.experiments.bench import PROMPTS, encode_prompts, row
from hf_failfast.measure.methods import PLAIN, drafted
from hf_failfast.measure.provenance import provenance
from hf_failfast.measure.records import SpeedRecord
from hf_failfast.measure.timing import Prompts, seconds_by_arm, side_by_side, time_answers
from hf_failfast.pairs import Pair, load_pair


def forward(runner: EagerRunner, ids: torch.Tensor) -> Callable[[int], Forward]:
    """A forward of a given number of rows after the ids (1, n)."""
    context = ids.shape[1]
    cache = runner.new_cache(2 * context)
    runner.run(Window(ids, [0], read=1), cache)
    return lambda width: runner.run(Window(ids[:, :width], [context], read=width), cache)


def time_forwards(pairs: dict[str, Pair], widths: list[int], contexts: list[int], repeats: int) -> dict[str, Any]:
    """Median milliseconds by arm, tokens before the rows, and number of rows."""
    runners = {}
    for name, pair in pairs.items():
        runners[name], runners[f"{name}, SDPA's attention"] = EagerRunner(pair.target), EagerRunner(pair.target)
        runners[f"{name}, SDPA's attention"].is_grouped = False
    milliseconds: dict[str, dict[int, dict[int, float]]] = {name: {} for name in runners}
    for context in contexts:
        ids = torch.randint(1000, (1, context), generator=torch.Generator().manual_seed(0))
        forwards = {name: forward(runner, ids) for name, runner in runners.items()}
        for width, runs in zip(widths, side_by_side(forwards, widths, repeats, warm_up=max(widths)), strict=True):
            for name, seconds in seconds_by_arm(runs).items():
                milliseconds[name].setdefault(context, {})[width] = round(1000 * median(seconds), 2)
    return milliseconds


def methods(name: str, pair: Pair) -> dict[str, Callable[[Prompts], list[SpeedRecord]]]:
    """Plain and drafted."""

    def grouped(prompts: Prompts) -> list[SpeedRecord]:
        with grouped_attention(pair.target):
            return PLAIN.run(pair.target, prompts)

    return {
        f"plain generate, {name}": partial(PLAIN.run, pair.target),
        f"plain generate, {name}, grouped attention": grouped,
        f"hf_failfast, {name}": partial(drafted(pair.drafter, pair.drafter.config).run, pair.target),
    }


def main(
    output: Path = RESULTS / "cpu.json",
    dtypes: Annotated[str, typer.Option(help="Comma-separated.")] = "bfloat16,float32",
    rows: Annotated[str, typer.Option(help="Rows of a forward, comma-separated.")] = "1,2,4,8,9,16,32",
    contexts: Annotated[str, typer.Option(help="Tokens before the rows, comma-separated.")] = "256,1024",
    prompts: int = len(PROMPTS),
    max_new_tokens: int = 48,
    repeats: Annotated[int, typer.Option(help="Of each answer; forwards are repeated five times as often.")] = 3,
) -> None:
    document: dict[str, Any] = {"max_new_tokens": max_new_tokens, "repeats": repeats}
    widths, lengths = ([int(number) for number in text.split(",")] for text in (rows, contexts))
    for dtype in dtypes.split(","):
        ordinary = load_pair(None, None, getattr(torch, dtype), "cpu")
        packed = copy.deepcopy(ordinary)
        prepack(packed.target, packed.drafter)
        pairs = {"ordinary weights": ordinary, "packed weights": packed}
        forwards = time_forwards(pairs, widths, lengths, 5 * repeats)
        encoded = encode_prompts(ordinary.tokenizer, PROMPTS[:prompts], ordinary.target)
        asked = [Prompts.greedy(ids, max_new_tokens) for ids in encoded]
        arms = methods("ordinary weights", ordinary) | methods("packed weights", packed)
        found = time_answers(arms, ordinary.target, asked, repeats)
        results = [row(name, records) for name, records in found.items()]
        document[dtype] = {"forward_ms": forwards, "results": results}
    document |= {"threads": torch.get_num_threads()} | provenance()
    store(document, output)


if __name__ == "__main__":
    typer.run(main)
