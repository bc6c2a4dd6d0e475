"""The updates of a LoRA, by the names of the target's layers, in PEFT's format and in ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .view import LowRank, linear_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "base_model.model."  # PEFT's, before the names that the base model gives its layers
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
# What PEFT takes for granted.
DEFAULTS = {"r": 8, "lora_alpha": 8}


class LoraWeights(nn.Module):
    """Low-rank updates of a target's linear layers, by name."""

    def __init__(self, updates: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.names = list(updates)
        self.layers = nn.ModuleList(updates.values())

    @property
    def updates(self) -> dict[str, LowRank]:
        pairs = zip(self.names, self.layers, strict=True)
        return {name: layer for name, layer in pairs if isinstance(layer, LowRank)}

    def check_fit(self, target: nn.Module) -> None:
        """Raises ValueError unless the target has a linear layer of the right size for each update."""
        modules = dict(target.named_modules())
        head = getattr(target, "get_output_embeddings", lambda: None)()
        for name, update in self.updates.items():
            sizes = linear_sizes(modules[name]) if name in modules else None
            if sizes is None:
                raise ValueError(
                    f"The LoRA updates `{name}`, but the target ({type(target).__name__}) has no such linear layer."
                )
            if sizes != update.sizes:
                raise ValueError(
                    f"The LoRA updates `{name}` as a layer of {update.sizes[0]} inputs and {update.sizes[1]} outputs, "
                    f"but the target's has {sizes[0]} and {sizes[1]}."
                )
            if modules[name] is head:
                raise ValueError(f"The LoRA updates `{name}`, the target's head, which is not supported.")

    @classmethod
    def of_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> LoraWeights:
        """From the content of PEFT's adapter_config.json and adapter_model.safetensors.

        Raises ValueError if they do not fit each other, or hold more than updates of linear layers.
        """
        names = sorted(key[len(PREFIX) : -len(DOWN)] for key in tensors if key.endswith(DOWN))
        expected = {f"{PREFIX}{name}{end}" for name in names for end in (DOWN, UP)}
        if expected != set(tensors) or not names:
            missing, unexpected = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
            raise ValueError(
                "The adapter's weights are not those of a LoRA of linear layers: "
                f"missing {missing[:8]} ({len(missing)} in all), "
                f"unexpected {unexpected[:8]} ({len(unexpected)} in all)."
            )
        listed = config.get("target_modules")
        if isinstance(listed, Sequence) and not isinstance(listed, str):
            absent = [each for each in listed if not any(_is_named(name, each) for name in names)]
            if absent:
                raise ValueError(f"The adapter's `target_modules` names {absent}, but it has no weights of them.")
        updates = {}
        for name in names:
            down, up = tensors[f"{PREFIX}{name}{DOWN}"], tensors[f"{PREFIX}{name}{UP}"]
            rank = int(_of_layer(config, "r", "rank_pattern", name))
            if down.ndim != 2 or up.ndim != 2 or (down.shape[0], up.shape[1]) != (rank, rank):
                raise ValueError(
                    f"The adapter's weights of `{name}` have shapes {list(down.shape)} and {list(up.shape)}, but its "
                    f"config says rank {rank}."
                )
            scale = _of_layer(config, "lora_alpha", "alpha_pattern", name)
            scale /= math.sqrt(rank) if config.get("use_rslora") else rank
            updates[name] = LowRank(down, (up.float() * scale).to(up.dtype))
        return cls(updates)

    @classmethod
    def new(cls, target: PreTrainedModel, rank: int) -> LoraWeights:
        """fp32 updates, zero at first, of every linear layer of the target's decoder; they take gradients.

        Raises ValueError if it has no linear layer that is small enough for the rank.
        """
        head = target.get_output_embeddings()
        generator = torch.Generator().manual_seed(0)
        updates = {}
        for name, module in target.named_modules():
            sizes = linear_sizes(module)
            if sizes is None or module is head or min(sizes) < rank or not _is_innermost(module):
                continue
            bound = 1 / math.sqrt(sizes[0])  # as PEFT begins
            down = torch.empty(rank, sizes[0]).uniform_(-bound, bound, generator=generator)
            updates[name] = LowRank(down, torch.zeros(sizes[1], rank)).requires_grad_()
        if not updates:
            raise ValueError(f"`lora` needs linear layers of at least {rank} inputs and outputs, the target has none.")
        return cls(updates)

    def as_peft(self) -> dict[str, torch.Tensor]:
        """The tensors of adapter_model.safetensors; the scale is in U, so that `lora_alpha` must be `r`."""
        tensors = {}
        for name, update in self.updates.items():
            tensors[f"{PREFIX}{name}{DOWN}"] = update.down.detach().to("cpu", copy=True)
            tensors[f"{PREFIX}{name}{UP}"] = update.up.detach().to("cpu", copy=True)
        return tensors


def _is_innermost(module: nn.Module) -> bool:
    """Whether it is a layer, and not a container that describes its own sizes."""
    return not any(True for _ in module.children())


def _of_layer(config: Mapping[str, Any], key: str, pattern_key: str, name: str) -> float:
    """A number of the config for one layer: the first pattern that the end of its name matches wins, as in PEFT."""
    patterns = config.get(pattern_key) or {}
    matching = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name))
    usual = config.get(key)
    return float(next(matching, DEFAULTS[key] if usual is None else usual))


def _is_named(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")
