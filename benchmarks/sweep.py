"""Which chunk rule is fastest for a pair on this machine: plain generate against a grid of options, paired.

    python benchmarks/sweep.py --chunk-lengths 4,6,8 --thresholds 0.45,0.7 --max-draft-lengths 8,32

The pair is SmolLM2-135M-Instruct and the bundled drafter. The last line printed is one JSON document.
"""

import json
from itertools import product
from typing import Annotated

import torch
import typer
from rich.progress import Progress
from transformers.utils import logging

import hf_failfast
from hf_failfast.cli.output.answers import setting
from hf_failfast.experiments.bench_models import PROMPTS
from hf_failfast.measure.comparison import BASELINE, OURS, compare, default_methods, summary
from hf_failfast.pairs import encode_prompt, load_smollm2


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main(
    chunk_lengths: Annotated[str, typer.Option(help="N, comma-separated.")] = "4,6,8",
    thresholds: Annotated[str, typer.Option(help="tau, comma-separated.")] = "0.45,0.7",
    max_draft_lengths: Annotated[str, typer.Option(help="N_max, comma-separated.")] = "8,32",
    max_new_tokens: int = 96,
    repeats: int = 3,
    dtype: str = "bfloat16",
) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    target, tokenizer = load_smollm2(getattr(torch, dtype))
    drafter = hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER)
    methods = {BASELINE: default_methods(target, drafter, {})[BASELINE]}
    for chunk, tau, longest in product(numbers(chunk_lengths), numbers(thresholds), numbers(max_draft_lengths)):
        options = {"chunk_length": int(chunk), "confidence_threshold": tau, "max_draft_length": int(longest)}
        if longest >= chunk:
            methods[str(options)] = default_methods(target, drafter, options)[OURS]
    prompts = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    with Progress(transient=True) as progress:
        task = progress.add_task("Timing", total=len(methods) * len(prompts) * repeats)
        results = compare(methods, prompts, max_new_tokens, repeats, lambda: progress.advance(task))
    records = summary(results)
    for record in sorted(records, key=lambda record: -record["speedup"]):
        print(f"{record['speedup']:.3f}x  {record['mean_acceptance_length']}  {record['method']}")
    print(json.dumps({"results": records, "max_new_tokens": max_new_tokens, "repeats": repeats} | setting(target)))


if __name__ == "__main__":
    typer.run(main)
