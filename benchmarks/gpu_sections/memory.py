"""What graphs keep of the GPU's memory, and what is left when their drafter is gone."""

import gc
from typing import Any

import torch

from .correctness import generate, own_drafter, small
from .machine import Machine


def measure_memory(machine: Machine) -> dict[str, Any]:
    """GB allocated: before any graph, and around the life of a second drafter. The first one leaves what torch keeps
    of the streams that graphs are captured on, once a process: its workspaces for cuBLAS."""
    target = small(machine)
    prompt = torch.arange(40, device=machine.device)[None] % 400
    settings = {"max_new_tokens": 32 if machine.is_gpu else 4, "do_sample": False}
    found = {"before any graph": gigabytes(machine)}
    generate(target, prompt, own_drafter(machine, target), settings)
    found["before"] = gigabytes(machine)
    drafter = own_drafter(machine, target)
    generate(target, prompt, drafter, settings)
    found["with graphs"] = gigabytes(machine)
    del drafter
    found["after"] = gigabytes(machine)
    is_small = found["after"] <= 1.01 * found["before"]
    return {"gb": found, "within one percent": is_small}


def gigabytes(machine: Machine) -> float:
    gc.collect()
    return torch.cuda.memory_allocated() / 1e9 if machine.is_gpu else 0.0
