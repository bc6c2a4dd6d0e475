"""A small addition to a drafter's weights: low-rank updates of its linear layers, and a bias over its head.

LoRA (arXiv 2106.09685): a layer y = W x becomes W x + U (D x) with D (rank, in) and U (out, rank). U is zero at first,
so that a new adapter changes nothing. The drafter reads D, U and the bias from buffers whose addresses never change:
what was learned is copied into them, and CUDA graphs that were captured before stay valid.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import linear

from .bodies.borrowed import SharedBody

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "failfast_adapter.safetensors"

Weights = tuple[torch.Tensor, ...]


class _Thread(threading.local):
    """What the forwards of this thread read in place of the buffers; None: the buffers."""

    weights: Mapping[nn.Module, Weights] | None = None


_THREAD = _Thread()


@contextmanager
def reading(weights: Mapping[nn.Module, Weights]) -> Iterator[None]:
    """In this context this thread's forwards add these weights, and nothing where a module has none here."""
    before, _THREAD.weights = _THREAD.weights, weights
    try:
        yield
    finally:
        _THREAD.weights = before


class Addition(nn.Module):
    """A part of an adapter."""

    def weights(self) -> Weights | None:
        """What a forward of this thread is to add; None: nothing."""
        return self.own() if _THREAD.weights is None else _THREAD.weights.get(self)

    def own(self) -> Weights:
        """The buffers."""
        return tuple(self.buffers(recurse=False))

    def reset(self) -> None:
        """Makes it add nothing."""
        self.own()[-1].zero_()


class AdaptedLinear(Addition):
    """A linear layer with a low-rank update."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        dtype, device = _float_dtype(base.weight), base.weight.device
        self.register_buffer("down", torch.empty(rank, base.in_features, dtype=dtype, device=device))
        self.register_buffer("up", torch.zeros(base.out_features, rank, dtype=dtype, device=device))
        self.reset()

    def reset(self) -> None:
        """Also draws D anew, with a seed of its own: the request's random numbers stay as they are."""
        super().reset()
        down = self.own()[0]
        bound = 1 / math.sqrt(down.shape[1])
        generator = torch.Generator().manual_seed(0)
        down.copy_(torch.empty(down.shape).uniform_(-bound, bound, generator=generator))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`: (..., in_features) to (..., out_features)."""
        output: torch.Tensor = self.base(hidden)
        weights = self.weights()
        if weights is None:
            return output
        down, up = (weight.to(hidden.dtype) for weight in weights)
        return output + linear(linear(hidden, down), up)


class HeadBias(Addition):
    """Added to the logits (..., V) of the drafter's head."""

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("bias", torch.zeros(size, device=device))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        weights = self.weights()
        return logits if weights is None else logits + weights[0].to(logits.dtype)


class Adapter:
    """The additions to one body: found if it has any, else made.

    parts: by their names in the body.
    """

    def __init__(self, body: SharedBody | PreTrainedModel, head_size: int, rank: int) -> None:
        """rank: of a new one; 0 for a bias alone. Raises ValueError if the body has no linear layer, or if its adapter
        is for a head of another size."""
        self.body = body
        present = {type(part) for part in body.modules() if isinstance(part, Addition)}
        if AdaptedLinear not in present and rank:
            _adapt_layers(body, rank)
        if HeadBias not in present:
            _adapt_head(body, head_size)
        modules = body.named_modules()
        self.parts = {_plain(name, part): part for name, part in modules if isinstance(part, Addition)}
        size = len(self.parts["head_bias"].own()[0])
        if size != head_size:
            raise ValueError(
                f"The drafter's adapter is for a head of {size} tokens, but the target's has {head_size}."
            )

    @property
    def rank(self) -> int:
        return next((part.own()[0].shape[0] for part in self.parts.values() if isinstance(part, AdaptedLinear)), 0)

    @torch.no_grad()
    def reset(self) -> None:
        """Makes it an adapter that changes nothing."""
        for part in self.parts.values():
            part.reset()

    def masters(self) -> dict[nn.Module, Weights]:
        """Copies of the buffers in fp32, which take gradients."""
        copies = {}
        for part in self.parts.values():
            copies[cast(nn.Module, part)] = tuple(
                weight.detach().to(torch.float32, copy=True).requires_grad_() for weight in part.own()
            )
        return copies

    @torch.no_grad()
    def publish(self, masters: Mapping[nn.Module, Weights]) -> None:
        """Copies learned weights to where drafting reads them."""
        for part in self.parts.values():
            for weight, learned in zip(part.own(), masters[part], strict=True):
                weight.copy_(learned)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The buffers by name, on the CPU."""
        return {key: weight.detach().cpu().clone() for key, weight in self._buffers().items()}

    def save(self, folder: Path, drafter: str, only_bias: bool = False) -> None:
        """Writes `FILE` into the folder, with the name of the drafter that it belongs to."""
        tensors = {key: weight for key, weight in self.tensors().items() if not only_bias or key.startswith("head")}
        rank = 0 if only_bias else self.rank
        save_file(tensors, folder / FILE, metadata={"drafter": drafter, "rank": str(rank)})

    def deltas(self) -> dict[str, torch.Tensor]:
        """What the layers' weights (out, in) grow by, fp32 on the CPU, by the names of the layers."""
        found = {}
        for name, part in self.parts.items():
            if isinstance(part, AdaptedLinear):
                down, up = (weight.detach().float().cpu() for weight in part.own())
                found[name] = up @ down
        return found

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Fills the buffers from a file. Raises ValueError if it is not of this body."""
        _, stored = read_adapter(path)
        own = self._buffers()
        different = sorted(key for key in own | stored if key not in own or key not in stored)
        different += sorted(key for key in own if key in stored and own[key].shape != stored[key].shape)
        if different:
            raise ValueError(
                f"The adapter {str(path)!r} does not fit the drafter: {different[:8]} ({len(different)} in all) are "
                "in one of them only, or of another shape."
            )
        for key, weight in own.items():
            weight.copy_(stored[key])

    def _buffers(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{key}": weight
            for name, part in self.parts.items()
            for key, weight in part.named_buffers(recurse=False)
        }


def read_adapter(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """(metadata, tensors) of a file that `Adapter.save` wrote. Raises ValueError on any other."""
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"The adapter {str(path)!r} is damaged or incomplete: {error}.") from error
    if not {"drafter", "rank"} <= set(metadata) or not metadata["rank"].isdigit():
        raise ValueError(f"The adapter {str(path)!r} does not name its drafter and rank: it is not one of `save`.")
    return metadata, tensors


def head_size(head: nn.Module) -> int:
    """Tokens that a head has logits of."""
    return int(cast(torch.Tensor, head.weight).shape[0])


def _adapt_layers(body: SharedBody | PreTrainedModel, rank: int) -> None:
    other = body.fusion if isinstance(body, SharedBody) else body.get_output_embeddings()
    left_out = set() if other is None else set(other.modules())
    layers = {
        name: part for name, part in body.named_modules() if isinstance(part, nn.Linear) and part not in left_out
    }
    if not layers:
        raise ValueError(f"An adapter needs linear layers, and {type(body).__name__} has none.")
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(body.get_submodule(parent), child, AdaptedLinear(layer, rank).eval())


def _adapt_head(body: SharedBody | PreTrainedModel, size: int) -> None:
    bias = HeadBias(size, next(body.parameters()).device).eval()
    if isinstance(body, SharedBody):
        body.head_bias = bias
    else:
        body.set_output_embeddings(nn.Sequential(body.get_output_embeddings(), bias).eval())


def _plain(name: str, part: Addition) -> str:
    """A part's name; the bias has the same one on a native head and on a borrowed one."""
    return "head_bias" if isinstance(part, HeadBias) else name


def _float_dtype(weight: torch.Tensor) -> torch.dtype:
    """That of the weight; float32 where it is quantised."""
    return weight.dtype if weight.dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.float32
