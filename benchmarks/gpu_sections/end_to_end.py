"""Whole generations of a pair with its real weights."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel

import hf_failfast
from hf_failfast.drafters import DiffusionDrafter
from hf_failfast.measure.methods import PLAIN, Method, drafted, plain
from hf_failfast.measure.timing import Prompts
from hf_failfast.pairs import DEMO_PROMPTS, encode_prompt, load_smollm2

from .correctness import own_drafter, small
from .machine import Machine


def measure_smollm2(machine: Machine) -> dict[str, Any]:
    """The demo's pair with its real weights on its own prompts; without a GPU, a tiny pair."""
    if not machine.is_gpu:
        target = small(machine)
        drafters: dict[str, DiffusionDrafter] = {
            kind: own_drafter(machine, target, runner=runner)
            for kind, runner in (("eager", "eager"), ("auto", "cuda_graphs"))
        }
        return end_to_end(machine, target, drafters, [torch.arange(20)[None]], 8)
    target, tokenizer = load_smollm2(torch.bfloat16)
    target.to(machine.device)
    prompts = [encode_prompt(tokenizer, prompt).to(machine.device) for prompt in DEMO_PROMPTS]
    drafters = {kind: hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER, runner=kind) for kind in ("eager", "auto")}
    return end_to_end(machine, target, drafters, prompts, 256)


def end_to_end(
    machine: Machine,
    target: PreTrainedModel,
    drafters: dict[str, DiffusionDrafter],
    prompts: Sequence[torch.Tensor],
    max_new_tokens: int,
) -> dict[str, Any]:
    """Tokens per second of plain decoding, by `generate` and from graphs, and of drafting eagerly and from graphs;
    the latter over `generate`, and over the fastest plain decoding. identical: answers that are `generate`'s, which
    in bfloat16 rounding may part."""
    arms: dict[str, Method] = {"plain": PLAIN, "captured_plain": plain("cuda_graphs", machine.graphs())}
    arms |= {kind: drafted(drafter, drafter.config) for kind, drafter in drafters.items()}
    asked = [Prompts.greedy(ids, max_new_tokens) for ids in prompts]
    found: dict[str, Any] = {}
    texts = {}
    for name, arm in arms.items():
        for prompt in asked:  # captures
            arm.run(target, prompt)
        start = perf_counter()
        records = [arm.run(target, prompt)[0] for prompt in asked]
        machine.wait()
        speed = sum(record.new_tokens for record in records) / (perf_counter() - start)
        texts[name] = [record.token_ids for record in records]
        found[f"{name}_tokens_per_second"] = speed
        found[f"{name}_identical"] = sum(a == b for a, b in zip(texts[name], texts["plain"], strict=True))
        if stats := [record.stats for record in records if record.stats is not None]:
            total = hf_failfast.SpecDecodingStats.total(stats)
            found[f"{name}_tokens_per_round"] = total.mean_acceptance_length
    fastest = max(found["plain_tokens_per_second"], found["captured_plain_tokens_per_second"])
    return found | {
        "auto_over_plain": found["auto_tokens_per_second"] / found["plain_tokens_per_second"],
        "auto_over_fastest_plain": found["auto_tokens_per_second"] / fastest,
        "prompts": len(prompts),
    }
