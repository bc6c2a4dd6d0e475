"""What steps the weights, and rounds them where a checkpoint is to be small."""

from collections.abc import Sequence

import torch

from .config import Optimizer

BETAS = (0.9, 0.95)
LEFT_OUT = 16  # bits of a float32 that a bfloat16 does not have


def new_optimizer(name: Optimizer, parameters: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
    """AdamW, with its moments in float32; or by bitsandbytes in 8 bits, with a scale for each 256 of them."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, betas=BETAS, weight_decay=0.0)
    from bitsandbytes.optim.adamw import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, betas=BETAS, weight_decay=0.0)
    return optimizer


@torch.no_grad()
def round_at_random(parameters: Sequence[torch.Tensor], generator: torch.Generator) -> None:
    """Rounds float32 tensors, on the generator's device, to numbers that bfloat16 holds: up or down in proportion to
    the distance, so that the expected value is the number itself. Rounding to the nearest would lose small steps."""
    for each in parameters:
        bits = each.view(torch.int32)
        noise = torch.randint(1 << LEFT_OUT, bits.shape, generator=generator, dtype=torch.int32, device=bits.device)
        bits.add_(noise).bitwise_and_(-(1 << LEFT_OUT))


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, in bfloat16 where that holds them all."""
    half = tensor.bfloat16()
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor
