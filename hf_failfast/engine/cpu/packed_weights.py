"""Linear layers that multiply with weights packed for oneDNN: faster forwards on a CPU, drafted and plain alike.

A CPU's matrix product first rearranges the weight, in every call. `prepack` does this once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import nn
from torch.nn.functional import linear

logger = logging.getLogger(__name__)

# Largest allowed difference between packed and plain results, as a share of the largest output: fp32 sums run in
# another order, and in bf16 that may round to the next number.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
CHECKED_ROWS = (1, 8)  # matrix-vector and matrix-matrix products have kernels of their own


class HasModules(Protocol):
    """A model, or a drafter."""

    def modules(self) -> Iterator[nn.Module]: ...


def prepack(*models: HasModules) -> Prepacked:
    """Packs the models' linear layers until `undo()` of what it returns, or for a `with` block.

    models: the target, and the drafter if there is one; what it borrows from the target is packed with the target.

    Packs ordinary `nn.Linear` layers in float32 or bfloat16 on the CPU, each after a comparison with its unpacked
    results; all others (quantised, offloaded, in adapters) stay as they are, with one warning. Only forwards without
    gradients use the packed weights. They are a second copy in memory: the weights themselves stay where they are, so
    that saving, training, copies and tied embeddings see no difference. A weight that was changed or replaced is
    packed again by the next forward; only changes in place through `weight.data` go unnoticed.

    Raises ValueError if there is no layer to pack, or if this torch or processor cannot do it.
    """
    modules = dict.fromkeys(module for model in models for module in model.modules())
    adapted = {inner for module in modules if hasattr(module, "base_layer") for inner in module.modules()}
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    layers = [layer for layer in linears if layer not in adapted and _is_plain(layer)]
    unpacked = set(linears).difference(layers)
    others = Counter(type(layer).__name__ for layer in unpacked if not isinstance(layer, PackedLinear))
    found = ", ".join(f"{count} {name}" for name, count in others.items())
    if not layers and len(unpacked) == others.total():
        raise ValueError(
            "`prepack` needs ordinary linear layers in float32 or bfloat16 on a CPU for which torch has oneDNN, but "
            f"there are {found or 'no linear layers'}."
        )
    if others:
        logger.warning("`prepack` leaves layers as they are that it cannot pack: %s.", found)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return Prepacked(layers)


def is_prepacked(model: HasModules) -> bool:
    """Whether any layer of the model is packed now."""
    return any(isinstance(module, PackedLinear) for module in model.modules())


def is_packable(model: HasModules) -> bool:
    """Whether any layer of the model is an ordinary one that `prepack` would pack."""
    return any(isinstance(module, nn.Linear) and _is_plain(module) for module in model.modules())


def computes_in(dtype: torch.dtype) -> bool:
    """Whether oneDNN has matrix products in this dtype on this processor; bfloat16 is slow where it has none."""
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Prepacked:
    """Layers that are packed until `undo()`, or until the end of the `with` block."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        packed = [_checked(layer) for layer in layers]
        self.layers = layers
        for layer, weight in zip(layers, packed, strict=True):
            vars(layer)["_packed"] = weight
            layer.__class__ = PackedLinear

    def undo(self) -> None:
        """Makes the layers ordinary ones again, and frees the packed weights."""
        for layer in self.layers:
            if type(layer) is PackedLinear:
                layer.__class__ = nn.Linear  # type: ignore[assignment]
                vars(layer).pop("_packed", None)
        self.layers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


class Packed(NamedTuple):
    """The packed copy of a weight, None if it cannot be packed, and what identifies the weight."""

    copy: torch.Tensor | None
    memory: torch.Tensor  # the weight's; held, so that no later weight can get the same address
    version: int

    def is_of(self, weight: torch.Tensor) -> bool:
        """Whether it was packed from this weight as it is now."""
        return weight.data_ptr() == self.memory.data_ptr() and _version(weight) == self.version


class PackedLinear(nn.Linear):
    """A linear layer with a packed copy of its weight. `prepack` turns ordinary layers into it, and back."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`: (..., in_features) to (..., out_features)."""
        weight = self.weight
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return linear(input, weight, self.bias)
        packed: Packed | None = vars(self).get("_packed")
        if packed is None or not packed.is_of(weight):
            packed = vars(self)["_packed"] = _pack(weight)
        if packed.copy is None or input.dtype != weight.dtype:
            return linear(input, weight, self.bias)
        return _multiply(input, packed.copy, self.bias)

    def __reduce_ex__(self, _: object) -> tuple[Any, ...]:
        """Copies and pickles of the layer are ordinary ones."""
        state = {name: value for name, value in vars(self).items() if name != "_packed"}
        return object.__new__, (nn.Linear,), state


def _is_plain(layer: nn.Linear) -> bool:
    """Whether the layer is neither quantised nor has a forward that something else has replaced."""
    return type(layer) is nn.Linear and "forward" not in vars(layer) and _is_packable(layer.weight)


def _is_packable(weight: torch.Tensor) -> bool:
    """Whether it is an ordinary parameter that counts its changes, in a dtype that oneDNN supports here."""
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.dtype in TOLERANCE
        and not weight.is_inference()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and computes_in(weight.dtype)
    )


# The two operators are torch's own, emitted by its compiler, but private: hence `_checked`.


def _pack(weight: torch.Tensor) -> Packed:
    memory, version = weight.detach(), _version(weight)
    copy = torch.ops.mkldnn._reorder_linear_weight(memory) if _is_packable(weight) else None
    return Packed(copy, memory, version)


def _version(weight: torch.Tensor) -> int:
    """Number of changes in place; weights made in inference mode do not count them, and are not packed."""
    return 0 if weight.is_inference() else weight._version


def _multiply(input: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")
    return product


def _checked(layer: nn.Linear) -> Packed:
    """The packed weight. Raises ValueError if the layer computes something else with it than without."""
    packed = _pack(layer.weight)
    assert packed.copy is not None
    dtype = layer.weight.dtype
    for num_rows in CHECKED_ROWS:
        rows = torch.randn(num_rows, layer.in_features, generator=torch.Generator().manual_seed(num_rows)).to(dtype)
        expected = linear(rows, layer.weight, layer.bias).float()
        error = (_multiply(rows, packed.copy, layer.bias).float() - expected).abs().max()
        bound = TOLERANCE[dtype] * expected.abs().max()
        if not error <= bound:
            raise ValueError(
                f"`prepack`: torch {torch.__version__} computes {layer} in {dtype} with packed weights {error:.2g} "
                f"off for {num_rows} rows, more than {bound:.2g}."
            )
    return packed
