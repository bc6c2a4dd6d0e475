"""Fused GPU kernels, written in Triton, and their definitions in torch (`reference`), which run everywhere else.

The functions here choose: Triton on a CUDA device where it works, else the reference. Nothing imports Triton before.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from . import reference

logger = logging.getLogger(__name__)


def most_likely(logits: torch.Tensor, vocab_size: int, mask_token_id: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.most_likely`."""
    kernel = _kernel("confidence", "most_likely", logits) or reference.most_likely
    token_ids, confidence = kernel(logits, vocab_size, mask_token_id)
    return token_ids, confidence


def _kernel(module: str, name: str, tensor: torch.Tensor) -> Callable[..., Any] | None:
    if not tensor.is_cuda or not triton_works(tensor.device):
        return None
    from . import acceptance, attention, confidence

    modules = {"acceptance": acceptance, "attention": attention, "confidence": confidence}
    kernel: Callable[..., Any] = getattr(modules[module], name)
    return kernel


@functools.cache
def triton_works(device: torch.device) -> bool:
    """Whether a kernel compiles and runs on the device; says once why not."""
    try:
        from .confidence import most_likely

        most_likely(torch.zeros(1, 1, 16, device=device), 16, None)
    except Exception as error:  # no Triton, no compiler for its launcher, a device it does not know
        logger.warning("Triton kernels do not work here (%s); using torch instead.", error)
        return False
    return True
