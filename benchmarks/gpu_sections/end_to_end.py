"""Whole generations of a pair with its real weights."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

import hf_failfast
from hf_failfast.pairs import DEMO_PROMPTS, encode_prompt, load_smollm2

from .machine import Machine


def measure_smollm2(machine: Machine) -> dict[str, Any]:
    """The demo's pair with its real weights: tokens per second of plain decoding, eager and captured drafting."""
    target, tokenizer = load_smollm2(torch.bfloat16)
    target.to(machine.device)
    prompts = [encode_prompt(tokenizer, prompt).to(machine.device) for prompt in DEMO_PROMPTS]
    settings = {"max_new_tokens": 256, "do_sample": False}
    calls: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"plain": lambda ids: target.generate(ids, **settings)}
    for name in ("eager", "auto"):
        drafter = hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER, runner=name)
        calls[name] = lambda ids, drafter=drafter: target.generate(
            ids, assistant_model=drafter, custom_generate="hf_failfast", **settings
        )
    found: dict[str, Any] = {}
    for name, call in calls.items():
        for ids in prompts:  # captures
            call(ids)
        start = perf_counter()
        tokens = sum(call(ids).shape[1] - ids.shape[1] for ids in prompts)
        machine.wait()
        found[f"{name}_tokens_per_second"] = tokens / (perf_counter() - start)
    return found
