"""The Triton kernels beside their references in torch: the same numbers, and how fast."""

from collections.abc import Callable
from typing import Any

import torch

from hf_failfast.engine import kernels
from hf_failfast.engine.kernels import reference

from .machine import Machine


def measure_kernels(machine: Machine) -> dict[str, Any]:
    """Each kernel against its reference in bfloat16: the largest difference, and both times."""
    generator = torch.Generator(machine.device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=machine.device, dtype=torch.bfloat16)

    found: dict[str, Any] = {}
    vocab = 151936 if machine.is_gpu else 500
    for rows in (10, 64):
        logits = random(1, rows, vocab)
        found[f"most_likely, {rows} rows"] = _pair(
            machine,
            lambda logits=logits: kernels.most_likely(logits, vocab, 7),
            lambda logits=logits: reference.most_likely(logits, vocab, 7),
        )
    for rows, slots in ((1, 1024), (32, 1024), (32, 4096), (64, 4096)):
        slots = slots if machine.is_gpu else 96
        query, key, value = random(1, 12, rows, 128), random(1, 2, slots, 128), random(1, 2, slots, 128)
        limit = torch.randint(1, slots + 1, (1, rows), generator=generator, device=machine.device)
        values = (query, key, value, limit)
        found[f"attention, {rows} rows, {slots} slots"] = _pair(
            machine,
            lambda values=values: (kernels.attention(*values),),
            lambda values=values: (reference.attention(*values),),
        )
    eos = torch.tensor([2], device=machine.device)
    tokens = torch.randint(3, (8, 31), generator=generator, device=machine.device)
    confidence = torch.rand(8, 30, generator=generator, device=machine.device)
    draft = torch.where(confidence < 0.9, tokens[:, :-1], 5)
    chunk = (draft, confidence, 0.1, eos)
    found["chunk_decision"] = _pair(
        machine,
        lambda: (torch.tensor(kernels.chunk_decision(*chunk)),),
        lambda: (torch.tensor(reference.chunk_decision(*chunk)),),
    )
    batch = (draft, confidence, tokens, [30] * 8, [100] * 8, [False] * 8, 500, eos)
    found["accept"] = _pair(
        machine,
        lambda: (torch.tensor([row[:4] for row in kernels.accept(*batch)]),),
        lambda: (torch.tensor([row[:4] for row in reference.accept(*batch)]),),
    )
    return found


def _pair(machine: Machine, ours: Callable[[], Any], theirs: Callable[[], Any]) -> dict[str, Any]:
    differences = [
        (a.double() - b.double()).abs().max().item() for a, b in zip(ours(), theirs(), strict=True) if a.numel()
    ]
    return {
        "largest_difference": max(differences),
        "kernel_us": 1e6 * machine.seconds(ours),
        "torch_us": 1e6 * machine.seconds(theirs),
    }
