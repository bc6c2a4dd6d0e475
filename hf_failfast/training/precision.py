"""In which numbers a machine trains."""

import torch

from ..engine.cpu.packed_weights import computes_in


def training_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, or float32 on a CPU without matrix products in bfloat16: there these take seven times as long."""
    if device.type == "cpu" and not computes_in(torch.bfloat16):
        return torch.float32
    return torch.bfloat16
