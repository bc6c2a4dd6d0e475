"""The Triton kernels beside their references in torch: the same numbers, and how fast."""

from collections.abc import Callable
from typing import Any

import torch

from hf_failfast import kernels
from hf_failfast.kernels import reference

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
    if machine.is_gpu:
        found["accept"] = _accept_pair(machine)
    return found


def _accept_pair(machine: Machine) -> dict[str, Any]:
    from hf_failfast.kernels.triton_acceptance import accept

    generator = torch.Generator(machine.device).manual_seed(1)
    tokens = torch.randint(3, (8, 31), generator=generator, device=machine.device)
    draft = torch.where(torch.rand(8, 30, generator=generator, device=machine.device) < 0.9, tokens[:, :-1], 5)
    ones = torch.ones(8, dtype=torch.long, device=machine.device)
    arguments = (draft, 30 * ones, tokens, 100 * ones, 0 * ones, 500, torch.tensor([2], device=machine.device))
    return _pair(machine, lambda: accept(*arguments), lambda: reference.accept(*arguments))


def _pair(machine: Machine, ours: Callable[[], Any], theirs: Callable[[], Any]) -> dict[str, Any]:
    differences = [
        (a.double() - b.double()).abs().max().item() for a, b in zip(ours(), theirs(), strict=True) if a.numel()
    ]
    return {
        "largest_difference": max(differences),
        "kernel_us": 1e6 * machine.seconds(ours),
        "torch_us": 1e6 * machine.seconds(theirs),
    }
