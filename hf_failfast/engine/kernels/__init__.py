"""Fused GPU kernels, written in Triton, and their definitions in torch (`reference`), which run everywhere else.

The functions here choose Triton on a CUDA device where it works, else the reference. Triton is imported on first use.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from . import reference

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def is_fused(device: torch.device) -> bool:
    """Whether the functions here are kernels on this device."""
    return device.type == "cuda" and triton_works(device)


@functools.cache
def triton_works(device: torch.device) -> bool:
    """Whether a kernel compiles and runs on the device; logs once why not."""
    try:
        from .triton_confidence import most_likely

        most_likely(torch.zeros(1, 1, 16, device=device), 16, None)
    except Exception as error:  # no Triton, no compiler for its launcher, a device it does not know
        logger.warning("Triton kernels do not work here (%s); using torch instead.", error)
        return False
    return True


def _choosing(definition: Callable[Arguments, Result], module: str) -> Callable[Arguments, Result]:
    """Calls the kernel of the definition's name on devices that have it, else the definition; the device is that of
    the first argument, a tensor."""

    @functools.wraps(definition)
    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        tensor: Any = arguments[0]
        if not is_fused(tensor.device):
            return definition(*arguments, **options)
        # By name, not by `import_module`: an exported repository holds what is named in such statements.
        from . import triton_attention, triton_confidence, triton_decisions, triton_decoder

        modules = {
            "attention": triton_attention,
            "confidence": triton_confidence,
            "decisions": triton_decisions,
            "decoder": triton_decoder,
        }
        with torch.cuda.device_of(tensor):  # Triton launches on the current device
            result: Result = getattr(modules[module], definition.__name__)(*arguments, **options)
        return result

    return call


most_likely = _choosing(reference.most_likely, "confidence")
attention = _choosing(reference.attention, "attention")
chunk_decision = _choosing(reference.chunk_decision, "decisions")
accept = _choosing(reference.accept, "decisions")
embed = _choosing(reference.embed, "decoder")
add_norm = _choosing(reference.add_norm, "decoder")
rotate_and_store = _choosing(reference.rotate_and_store, "decoder")
swiglu = _choosing(reference.swiglu, "decoder")
