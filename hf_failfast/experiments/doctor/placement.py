"""How the forwards of target and drafter run on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...drafters import DiffusionDrafter, DraftSession
from ...engine.causal_lm import attention_name
from ...engine.cpu.packed_weights import HasModules, computes_in, is_packable, is_prepacked
from ...engine.cuda.graph_runner import CudaGraphRunner
from ...engine.runner import EagerRunner

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Placement:
    """attention: the implementation. eager_because: why no CUDA graphs replay the forwards; None if they do.
    packed: whether weights are packed for a CPU. packable: whether there are others that could be.
    is_native: whether the processor computes in this dtype; on a GPU it is not asked."""

    device: str
    dtype: str
    attention: str | None
    eager_because: str | None
    packed: bool
    packable: bool
    is_native: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def of_target(target: PreTrainedModel, drafter: DiffusionDrafter) -> Placement:
    reason = drafter.runners.why_eager(target, target, "target")
    return _placed(target, target.device, target.dtype, attention_name(target), reason)


def of_drafter(target: PreTrainedModel, drafter: DiffusionDrafter, session: DraftSession) -> Placement | None:
    """None for a drafter without weights of its own."""
    weights = next((weight for module in drafter.modules() for weight in module.parameters()), None)
    if weights is None:
        return None
    runner = getattr(getattr(session, "inner", session), "runner", None)
    attention = None
    reason: str | None = "this kind of drafter makes its passes itself, without graphs"
    if isinstance(runner, EagerRunner):
        attention = attention_name(runner.model)
        why = drafter.runners.why_eager(runner.model, target, "drafter")
        reason = why if isinstance(runner, CudaGraphRunner) else why or reason
    return _placed(drafter, weights.device, weights.dtype, attention, reason)


def _placed(
    model: HasModules, device: torch.device, dtype: torch.dtype, attention: str | None, reason: str | None
) -> Placement:
    name, packing = str(dtype).removeprefix("torch."), (is_prepacked(model), is_packable(model))
    return Placement(str(device), name, attention, reason, *packing, device.type != "cpu" or computes_in(dtype))
