"""Fused GPU kernels, written in Triton, and their definitions in torch (`reference`), which run everywhere else.

The functions here choose: Triton on a CUDA device where it works, else the reference. Nothing imports Triton before.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch

from . import reference
from .reference import Accepted

logger = logging.getLogger(__name__)


def most_likely(logits: torch.Tensor, vocab_size: int, mask_token_id: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.most_likely`."""
    token_ids, confidence = _call("confidence", "most_likely", logits, vocab_size, mask_token_id)
    return token_ids, confidence


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    limit: torch.Tensor,
    first: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """See `reference.attention`."""
    attended: torch.Tensor = _call("attention", "attention", query, key, value, limit, first, scale)
    return attended


def chunk_decision(
    token_ids: torch.Tensor, confidence: torch.Tensor, threshold: float, eos_token_ids: torch.Tensor | None
) -> list[tuple[int, bool]]:
    """See `reference.chunk_decision`."""
    decision: list[tuple[int, bool]] = _call(
        "decisions", "chunk_decision", token_ids, confidence, threshold, eos_token_ids
    )
    return decision


def accept(
    draft_ids: torch.Tensor,
    confidence: torch.Tensor,
    token_ids: torch.Tensor,
    draft_lengths: Sequence[int],
    lengths: Sequence[int],
    finished: Sequence[bool],
    max_length: int,
    eos_token_ids: torch.Tensor | None,
) -> list[Accepted]:
    """See `reference.accept`."""
    accepted: list[Accepted] = _call(
        "decisions",
        "accept",
        draft_ids,
        confidence,
        token_ids,
        draft_lengths,
        lengths,
        finished,
        max_length,
        eos_token_ids,
    )
    return accepted


def is_fused(device: torch.device) -> bool:
    """Whether the functions here are kernels on this device."""
    return device.type == "cuda" and triton_works(device)


def _call(module: str, name: str, tensor: torch.Tensor, *arguments: Any) -> Any:
    if not is_fused(tensor.device):
        return getattr(reference, name)(tensor, *arguments)
    # By name, not by `import_module`: an exported repository holds what is named in such statements.
    from . import triton_attention, triton_confidence, triton_decisions

    modules = {"attention": triton_attention, "confidence": triton_confidence, "decisions": triton_decisions}
    with torch.cuda.device_of(tensor):  # Triton launches on the current device
        return getattr(modules[module], name)(tensor, *arguments)


@functools.cache
def triton_works(device: torch.device) -> bool:
    """Whether a kernel compiles and runs on the device; says once why not."""
    try:
        from .triton_confidence import most_likely

        most_likely(torch.zeros(1, 1, 16, device=device), 16, None)
    except Exception as error:  # no Triton, no compiler for its launcher, a device it does not know
        logger.warning("Triton kernels do not work here (%s); using torch instead.", error)
        return False
    return True
