"""Are more passes per chunk worth it, up to one per token? ("Fail fast" says no.)"""

from ..base import Axis, Setup
from ..sweeps import STORED, Variant, drafted, sweep, with_steps


def variants(setup: Setup) -> list[Variant]:
    """Passes per chunk; the last variant is `full`, one pass per token."""
    length = setup.config.chunk_length
    steps = [*(int(value) for value in setup.values if value < length), length]
    return [
        drafted({"denoising_steps": count, "is_full": count == length}, with_steps(setup.drafter, count), setup.config)
        for count in steps
    ]


EXPERIMENT = sweep(
    __doc__,
    Axis("passes per chunk", "denoising_steps", values=(1, 2, 4)),
    variants,
    stored=f"{STORED} --chunk-length 8 --max-draft-length 8",
)
