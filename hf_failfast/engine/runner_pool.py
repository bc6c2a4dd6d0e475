"""Chooses the runner of a generation, and keeps CUDA graphs between generations."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Literal, get_args

from .causal_lm import CausalLM
from .cuda.capture import CudaGraphs
from .cuda.compiled_layers import CompiledLayers
from .cuda.eligibility import obstacle
from .cuda.graph_runner import CudaGraphRunner
from .cuda.static_slots import KeptGraphs
from .exact.forwards import ExactRunner
from .runner import EagerRunner, LayerOutput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RunnerName = Literal["auto", "eager", "cuda_graphs", "compiled_graphs"]


class RunnerPool:
    """Makes the runners of one drafter's generations: the drafter's own and its targets'.

    It belongs to the drafter and refers to targets weakly, so that graphs live as long as both of them.

    name: `auto` uses CUDA graphs on a CUDA device if the model allows it, `cuda_graphs` also warns on a device
        without them, `compiled_graphs` also compiles the layers that it captures where the fused decoder does not take
        their place, `eager` never uses graphs.
    """

    def __init__(self, name: RunnerName = "auto", graphs: CudaGraphs | None = None) -> None:
        if name not in get_args(RunnerName):
            raise ValueError(f"`runner` must be one of {list(get_args(RunnerName))}, but is {name!r}.")
        self.name = name
        self.graphs = graphs or CudaGraphs()
        self._kept: weakref.WeakKeyDictionary[PreTrainedModel, dict[str, KeptGraphs]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: object) -> RunnerPool:
        """A copied drafter has no graphs yet: the existing ones read the original's weights."""
        return RunnerPool(self.name, self.graphs)

    def __reduce__(self) -> tuple[type[RunnerPool], tuple[RunnerName]]:
        """Nor has one that was sent to another process."""
        return RunnerPool, (self.name,)

    def target(
        self,
        target: PreTrainedModel,
        hidden_layers: tuple[int, ...] = (),
        recorded: tuple[LayerOutput, ...] = (),
        is_exact: bool = False,
    ) -> EagerRunner:
        """The runner that verifies; `hidden_layers` and `recorded` as in `EagerRunner`, which alone records."""
        if is_exact:
            return ExactRunner(target, hidden_layers, recorded)
        if recorded:
            return EagerRunner(target, hidden_layers, recorded)
        return self._runner(target, target, "target", hidden_layers)

    def drafter(self, model: CausalLM, target: PreTrainedModel) -> EagerRunner:
        """The runner that drafts for this target."""
        return self._runner(model, target, "drafter", ())

    def why_eager(self, model: CausalLM, target: PreTrainedModel, role: str) -> str | None:
        """Why forwards of this model run eagerly in generations of this target; None if they are replayed.

        role: `target` or `drafter`.
        """
        if self.name == "eager":
            return "`runner='eager'` was asked for"
        kept = self._kept.get(target, {}).get(role)
        return self._obstacle(model, role) or (None if kept is None else kept.problem)

    def _obstacle(self, model: CausalLM, role: str) -> str | None:
        if not self.graphs.is_available(model.device):
            return f"they need an NVIDIA GPU, and the {role} is on {model.device}"
        return obstacle(model)

    def explain(self, target: PreTrainedModel, reason: str) -> None:
        """Logs once, where graphs would be used, why the drafter's own forwards are never captured."""
        if self.name != "eager" and self.graphs.is_available(target.device):
            self._kept_for(target, "drafter").explain(reason)

    def _kept_for(self, target: PreTrainedModel, role: str) -> KeptGraphs:
        with self._lock:
            kept = self._kept.setdefault(target, {})
            if role not in kept:
                compiled = CompiledLayers() if self.name == "compiled_graphs" else None
                kept[role] = KeptGraphs(self.graphs, compiled)
            return kept[role]

    def _runner(
        self, model: CausalLM, target: PreTrainedModel, role: str, hidden_layers: tuple[int, ...]
    ) -> EagerRunner:
        is_possible = self.graphs.is_available(model.device)
        if self.name == "eager" or (self.name == "auto" and not is_possible):
            return EagerRunner(model, hidden_layers)
        kept = self._kept_for(target, role)
        reason = self._obstacle(model, role)
        if reason is not None:
            kept.warn(reason)
            return EagerRunner(model, hidden_layers)
        return CudaGraphRunner(model, hidden_layers, kept)
