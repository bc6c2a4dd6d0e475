"""What sampling costs: the warpers of one round, and whole generations on a pair where only overhead counts.

    python benchmarks/sampling.py

Warpers: temperature, top-k and top-p for 6 positions, one by one with transformers' processors, and at once with ours.
Pair: a random target of 8 layers, 64 wide, whose last 6 hardly matter, and its first 2 layers as drafter, one token a
pass: forwards cost almost nothing but the dispatch of their operations, as on a fast GPU. Plain sampling, and ours
with both verifiers. One thread, random order, medians. The last line printed is one JSON document.
"""

import json
import random
import tempfile
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
import typer
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

import hf_failfast
from hf_failfast.provenance import provenance
from hf_failfast.scoring import TokenChoice

WARPING = {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9}
DRAFT_LENGTH = 5
DEPTH = 2  # layers of the drafter
EPSILON = 0.04  # what the layers behind them contribute


def timed(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every contender, one warm-up apart, in random order."""
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name in order.sample(list(contenders), len(contenders)):
            started = perf_counter()
            contenders[name]()
            if repeat:
                seconds[name].append(perf_counter() - started)
    return seconds


def make_pair(vocab_size: int) -> tuple[Any, Any]:
    torch.manual_seed(0)
    sizes = {"vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = Qwen2Config(**sizes, **heads, **ids, num_hidden_layers=8, initializer_range=0.2)
    target = Qwen2ForCausalLM(config).eval()
    small = Qwen2ForCausalLM(Qwen2Config(**config.to_dict() | {"num_hidden_layers": DEPTH, "layer_types": None}))
    with torch.no_grad():
        for layer in target.model.layers[DEPTH:]:
            layer.self_attn.o_proj.weight *= EPSILON
            layer.mlp.down_proj.weight *= EPSILON
    small.load_state_dict({name: value for name, value in target.state_dict().items() if name in small.state_dict()})
    folder = tempfile.mkdtemp(prefix="drafter-")
    small.save_pretrained(folder)
    # With a shift, a chunk of one token has no masked position: the drafter reads as an autoregressive model.
    mask = {"attention": "causal_canvas", "shift": 1, "mask_token_id": vocab_size - 1}
    return target, hf_failfast.load_drafter(folder, **mask)


def time_warpers(target: Any, vocab_size: int, repeats: int) -> dict[str, float]:
    """Milliseconds for the positions of one round."""
    processors = target._get_logits_processor(GenerationConfig(**WARPING), input_ids_seq_length=64, device="cpu")
    choice = TokenChoice(processors, do_sample=True)
    logits, ids = torch.randn(1, DRAFT_LENGTH + 1, vocab_size) * 3, torch.zeros(1, 64, dtype=torch.long)
    seconds = timed(
        {
            "one_by_one": lambda: [processors(ids, logits[:, row].clone()) for row in range(DRAFT_LENGTH + 1)],
            "at_once": lambda: choice.scores(ids, logits),
        },
        repeats,
    )
    return {name: 1000 * median(values) for name, values in seconds.items()}


def time_generation(target: Any, drafter: Any, new_tokens: int, repeats: int) -> list[dict[str, Any]]:
    ids = torch.randint(target.config.vocab_size - 1, (1, 64), generator=torch.Generator().manual_seed(0))
    rule = {"chunk_length": 1, "max_draft_length": DRAFT_LENGTH, "confidence_threshold": 0.0}
    drafted = {"assistant_model": drafter, "custom_generate": "hf_failfast", **rule}
    arguments: dict[str, dict[str, Any]] = {
        "plain": {},
        "sample_and_match": drafted,
        "rejection": drafted | {"verifier": "rejection"},
    }
    lengths: dict[str, list[float]] = {name: [] for name in arguments}

    def generate(name: str) -> None:
        output = target.generate(
            ids, **WARPING, max_new_tokens=new_tokens, return_dict_in_generate=True, **arguments[name]
        )
        if "speculation" in output:
            lengths[name].append(output.speculation.mean_acceptance_length)

    seconds = timed({name: partial(generate, name) for name in arguments}, repeats)
    plain = median(seconds["plain"])
    return [
        {
            "method": name,
            "milliseconds": 1000 * median(values),
            "speedup": plain / median(values),
            "mean_acceptance_length": sum(lengths[name]) / len(lengths[name]) if lengths[name] else None,
        }
        for name, values in seconds.items()
    ]


def main(new_tokens: int = 96, repeats: int = 9, vocabularies: str = "1000,32000,152000") -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    results = []
    for vocab_size in map(int, vocabularies.split(",")):
        target, drafter = make_pair(vocab_size)
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
