"""How far a forward is from the time that its bytes need: the floor of every method on this machine."""

from time import perf_counter
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

_READ_BYTES = 2**28  # larger than any cache
_READS = 5

# Seconds of a small kernel inside a CUDA graph, whatever it computes: measured 2.6 to 3 us on an H200.
LAUNCH_SECONDS = 2.8e-6


class Launches(NamedTuple):
    """Kernels that a forward launches: of each decoder layer, and of the rest."""

    per_layer: int
    rest: int


# transformers' Qwen2 as it is, counted on a CPU; and layers of fused kernels.
LAUNCHES = {"captured": Launches(45, 30), "fused": Launches(11, 5)}


def modelled_pass(num_layers: int, floor_seconds: float, kind: str = "captured") -> float:
    """Seconds of a captured pass by a model, not measured: its launches, and after them the time of its bytes.

    kind: of `LAUNCHES`. It adds what partly overlaps, so that it is too long rather than too short: within 25 % of
    the passes measured on an H200 (`results/gpu-nvidia-h200.json`).
    """
    launches = LAUNCHES[kind]
    return (num_layers * launches.per_layer + launches.rest) * LAUNCH_SECONDS + floor_seconds


def bandwidth(device: torch.device) -> float:
    """Bytes per second that the device reads from memory, the best of a few sums over a large tensor."""
    values = torch.ones(_READ_BYTES // 4, device=device)
    seconds = []
    for _ in range(_READS):
        started = perf_counter()
        values.sum().item()
        seconds.append(perf_counter() - started)
    return _READ_BYTES / min(seconds)


def bytes_per_forward(target: PreTrainedModel, context: int) -> int:
    """What a forward has to read: every weight once, but for an embedding that is no head, and K/V of the context."""
    weights = {id(value): value.nbytes for value in target.parameters()}
    embedding, head = target.get_input_embeddings(), target.get_output_embeddings()
    if head is None or embedding.weight is not head.weight:
        weights.pop(id(embedding.weight), None)
    config = target.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return sum(weights.values()) + 2 * context * config.num_hidden_layers * heads * head_dim * target.dtype.itemsize


def floor(target: PreTrainedModel, context: int, forward_seconds: float) -> dict[str, Any]:
    """The measured forward of one token beside its floor, ready for JSON."""
    speed = bandwidth(target.device)
    moved = bytes_per_forward(target, context)
    return {
        "bandwidth_gb_per_second": round(speed / 1e9, 2),
        "bytes_per_forward": moved,
        "floor_ms": round(1e3 * moved / speed, 3),
        "forward_ms": round(1e3 * forward_seconds, 3),
        "forward_over_floor": round(forward_seconds * speed / moved, 2),
    }
