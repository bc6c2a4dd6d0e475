"""What sampling costs: the warpers of one round, and whole generations on a pair where only overhead counts.

    python benchmarks/sampling.py

Warpers: temperature, top-k and top-p for 6 positions, one by one with transformers' processors, and at once with ours.
Pair: that of tiny_pair.py, one token a pass: forwards cost almost nothing but the dispatch of their operations, as on
a fast GPU. Plain sampling, and ours with both verifiers. One thread, random order, medians. The last line printed is
one JSON document.
"""

import json
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
import typer
from tiny_pair import tiny_pair
from transformers import GenerationConfig
from transformers.utils import logging

from hf_failfast.decoding.token_choice import TokenChoice
from hf_failfast.measure.provenance import provenance
from hf_failfast.measure.timing import seconds_by_arm, side_by_side

WARPING = {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9}
DRAFT_LENGTH = 5


def time_warpers(target: Any, vocab_size: int, repeats: int) -> dict[str, float]:
    """Milliseconds for the positions of one round."""
    processors = target._get_logits_processor(GenerationConfig(**WARPING), input_ids_seq_length=64, device="cpu")
    choice = TokenChoice(processors, do_sample=True)
    logits, ids = torch.randn(1, DRAFT_LENGTH + 1, vocab_size) * 3, torch.zeros(1, 64, dtype=torch.long)
    arms = {
        "one_by_one": lambda ids: [processors(ids, logits[:, row].clone()) for row in range(DRAFT_LENGTH + 1)],
        "at_once": lambda ids: choice.scores(ids, logits),
    }
    [runs] = side_by_side(arms, [ids], repeats, warm_up=ids)
    seconds = seconds_by_arm(runs)
    return {name: 1000 * median(seconds[name]) for name in arms}


def time_generation(target: Any, drafter: Any, new_tokens: int, repeats: int) -> list[dict[str, Any]]:
    ids = torch.randint(target.config.vocab_size - 1, (1, 64), generator=torch.Generator().manual_seed(0))
    rule = {"chunk_length": 1, "max_draft_length": DRAFT_LENGTH, "confidence_threshold": 0.0}
    drafted = {"assistant_model": drafter, "custom_generate": "hf_failfast", **rule}
    arguments: dict[str, dict[str, Any]] = {
        "plain": {},
        "sample_and_match": drafted,
        "rejection": drafted | {"verifier": "rejection"},
    }
    shared = WARPING | {"max_new_tokens": new_tokens, "return_dict_in_generate": True}
    arms = {name: partial(target.generate, **shared, **extra) for name, extra in arguments.items()}
    [runs] = map(list, side_by_side(arms, [ids], repeats, warm_up=ids))
    milliseconds = {name: 1000 * median(values) for name, values in seconds_by_arm(runs).items()}
    lengths: dict[str, list[float]] = {name: [] for name in arms}
    for run in runs:
        if "speculation" in run.output:
            lengths[run.arm].append(run.output.speculation.mean_acceptance_length)
    return [
        {
            "method": name,
            "milliseconds": milliseconds[name],
            "speedup": milliseconds["plain"] / milliseconds[name],
            "mean_acceptance_length": fmean(lengths[name]) if lengths[name] else None,
        }
        for name in arms
    ]


def main(new_tokens: int = 96, repeats: int = 9, vocabularies: str = "1000,32000,152000") -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    results = []
    for vocab_size in map(int, vocabularies.split(",")):
        target, _, drafter = tiny_pair(vocab_size, intermediate_size=128, initializer_range=0.2)
        warpers = time_warpers(target, vocab_size, 5 * repeats)
        singly, together = warpers.values()
        print(f"{vocab_size:,} tokens: warpers {singly:.2f} ms, {together:.2f} ms ({singly / together:.1f}x)")
        methods = time_generation(target, drafter, new_tokens, repeats)
        for method in methods:
            length = method["mean_acceptance_length"]
            print(f"  {method['method']}: {method['speedup']:.2f}x", f"{length:.2f} tokens a round" if length else "")
        results.append({"vocab_size": vocab_size, "warpers_milliseconds": warpers, "methods": methods})
    print(json.dumps({"results": results, "new_tokens": new_tokens, "repeats": repeats} | provenance()))


if __name__ == "__main__":
    typer.run(main)
