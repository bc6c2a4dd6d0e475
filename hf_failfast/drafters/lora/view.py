"""A model with low-rank updates of linear layers, on some rows of a forward only, without a change to the model.

A view is a second tree of modules over the same weights: only the updated layers and the modules above them are new,
and these share the original's parameters, buffers and hooks. So the model needs no hook, no switch and no repair after
an exception, and other threads that run it see nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear


class Gate:
    """Which rows of a view's forward are updated, bools (B, q, 1)."""

    rows: torch.Tensor


class LowRank(nn.Module):
    """The update of a layer y = W x to y = W x + U D x (LoRA, arXiv 2106.09685).

    down: D (rank, in). up: U (out, rank), with LoRA's scale in it.
    """

    def __init__(self, down: torch.Tensor, up: torch.Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = nn.Parameter(up, requires_grad=False)

    @property
    def sizes(self) -> tuple[int, int]:
        """(in, out)"""
        return self.down.shape[1], self.up.shape[0]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """What is added: (..., in) to (..., out)."""
        down, up = self.down.to(hidden.dtype), self.up.to(hidden.dtype)
        return linear(linear(hidden, down), up)


class UpdatedLinear(nn.Module):
    """A linear layer of a view: the model's own, and on the gate's rows its update."""

    def __init__(self, base: nn.Module, update: LowRank, gate: Gate) -> None:
        super().__init__()
        self.base, self.update, self.gate = base, update, gate

    def __getattr__(self, name: str) -> torch.Tensor | nn.Module:
        """What code around the layer asks of it, such as its weight's dtype."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            found: torch.Tensor | nn.Module = getattr(super().__getattr__("base"), name)
            return found

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """As the layer itself; rows without the gate are its result, bit for bit."""
        output: torch.Tensor = self.base(hidden)
        rows = self.gate.rows.reshape(*hidden.shape[:-1], 1)  # some models flatten batch and row before a layer
        return torch.where(rows, output + self.update(hidden).to(output.dtype), output)


def view(model: nn.Module, updates: Mapping[str, LowRank], gate: Gate) -> nn.Module:
    """The model with updated layers, by their names in it.

    Raises ValueError if one of the modules above them does not run its own forward: a view of it would run the
    original's.
    """
    of_layer = {model.get_submodule(name): update for name, update in updates.items()}
    seen: dict[nn.Module, nn.Module] = {}

    def viewed(module: nn.Module) -> nn.Module:
        if module in seen:
            return seen[module]
        if module in of_layer:
            seen[module] = UpdatedLinear(module, of_layer[module], gate).train(module.training)
            return seen[module]
        children = {name: child and viewed(child) for name, child in module._modules.items()}
        is_new = any(child is not module._modules[name] for name, child in children.items())
        seen[module] = _copy(module, children) if is_new else module
        return seen[module]

    return viewed(model)


def _copy(module: nn.Module, children: dict[str, nn.Module | None]) -> nn.Module:
    if "forward" in vars(module) or module._compiled_call_impl is not None:
        raise ValueError(
            f"A LoRA cannot draft with a target whose {type(module).__name__} runs another forward than its own: it "
            "is compiled, offloaded or spread over devices."
        )
    copy: nn.Module = object.__new__(type(module))
    vars(copy).update(vars(module))
    vars(copy)["_modules"] = children
    return copy


def linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer, quantised ones and GPT-2's too; None if it is none."""
    layer: Any = module
    if hasattr(layer, "in_features") and hasattr(layer, "out_features"):
        return int(layer.in_features), int(layer.out_features)
    if type(layer).__name__ == "Conv1D":  # of transformers, whose weight is (in, out)
        inputs, outputs = layer.weight.shape
        return inputs, outputs
    return None
