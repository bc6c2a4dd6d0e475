"""A LoRA of the target in training: low-rank updates of all its linear layers, on the canvas rows only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from ..compatibility import CACHE
from ..drafters.checkpoints.reading import LORA_CONFIG, read_json
from ..drafters.lora.view import Gate, view
from ..drafters.lora.weights import LoraWeights
from ..engine.causal_lm import CausalLM
from ..engine.runner import EagerRunner, Mask
from ..engine.slot_cache import SlotCache
from .canvases import Canvases
from .model import CanvasDrafter

LORA_WEIGHTS = "adapter_model.safetensors"


class LoraCanvas(nn.Module):
    """The updates are all that is trained and stored; the target stays as it is, and is no part of the module.

    mask_token_id: what stands at the positions to be filled, an ordinary token of the target: its rows are known by
        their updates.
    """

    source_layers: tuple[int, ...] = ()
    draft_vocabulary: torch.Tensor | None = None

    def __init__(self, target: PreTrainedModel, rank: int) -> None:
        super().__init__()
        check_lora_target(target)
        target.requires_grad_(False)
        self.weights = LoraWeights.new(target, rank)
        self.rank = rank
        self.mask_token_id = mask_token(target)
        self.gate = Gate()
        updated = cast(PreTrainedModel, view(target, self.weights.updates, self.gate))
        self._models = (target, updated)  # a tuple: they are no parts of this module
        self._runner = EagerRunner(cast(CausalLM, target))

    @property
    def target(self) -> PreTrainedModel:
        return self._models[0]

    @property
    def head(self) -> torch.Tensor:
        """(vocabulary, hidden)"""
        head: Any = self.target.get_output_embeddings()
        weight: torch.Tensor = head.weight
        return weight

    def forward(self, canvases: Canvases, features: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """As `CanvasDrafter.forward`. The clean rows are the target's own: they have no gradients, and the canvas rows
        read their K/V."""
        tokens, positions = canvases.tokens, canvases.position_ids()
        num_rows, clean = tokens.shape
        masks = tokens.new_full((num_rows, positions.shape[1] - clean), self.mask_token_id)
        self.gate.rows = torch.ones_like(masks, dtype=torch.bool)[..., None]
        mask = self._runner.mask_of(canvases.attention_mask()[:, 0], positions)
        cache = self._runner.new_cache(positions.shape[1], num_rows)
        own, updated = self._models
        with torch.no_grad():
            first = _hidden(own, tokens, positions[:, :clean], _part(mask, slice(None, clean), clean), cache)
        cache.advance(clean)
        hidden = _hidden(updated, masks, positions[:, clean:], _part(mask, slice(clean, None)), cache)
        return first, hidden.unflatten(1, (canvases.anchors.shape[1], canvases.rows_per_canvas))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., vocabulary], in the target's own dtype."""
        return nn.functional.linear(hidden.to(self.head.dtype), self.head)

    def stored_state(self) -> dict[str, torch.Tensor]:
        """PEFT's tensors, in bfloat16."""
        return {name: value.bfloat16().contiguous() for name, value in self.weights.as_peft().items()}

    def start_from(self, folder: Path) -> None:
        """Takes over the updates of a LoRA. Raises ValueError if they are of other layers, or of another rank."""
        other = LoraWeights.of_peft(read_json(folder / LORA_CONFIG), load_file(folder / LORA_WEIGHTS)).updates
        own = self.weights.updates
        different = sorted(
            name
            for name in own.keys() | other.keys()
            if name not in own or name not in other or own[name].down.shape != other[name].down.shape
        )
        if different:
            raise ValueError(f"`initial` must be a LoRA of the same layers and rank, but differs in {different[:4]}.")
        with torch.no_grad():
            for name, update in own.items():
                update.down.copy_(other[name].down)
                update.up.copy_(other[name].up)

    def peft_config(self, target: str) -> dict[str, Any]:
        """adapter_config.json"""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": target,
            "r": self.rank,
            "lora_alpha": self.rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
            "target_modules": self.weights.names,
        }


Trainable = CanvasDrafter | LoraCanvas


def _hidden(
    model: PreTrainedModel, input_ids: torch.Tensor, positions: torch.Tensor, mask: Mask, cache: SlotCache
) -> torch.Tensor:
    """The decoder's normalised output [batch, rows, hidden] for tokens after those in the cache."""
    output = model.base_model(
        input_ids=input_ids, position_ids=positions, attention_mask=mask, **{CACHE: cache}, use_cache=True
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def _part(mask: Mask, rows: slice, columns: int | None = None) -> Mask:
    """Some rows of a mask [batch, 1, rows, columns], or of one per layer type; of their columns the first ones."""
    if isinstance(mask, torch.Tensor):
        return mask[:, :, rows, :columns]
    return {name: each if each is None else each[:, :, rows, :columns] for name, each in mask.items()}


def check_lora_target(target: PreTrainedModel) -> None:
    """Raises ValueError where no LoRA of the target can be trained."""
    output, name = target.get_output_embeddings(), type(target).__name__
    if output is None or getattr(output, "bias", None) is not None:
        raise ValueError(f"`target` must have an output head without bias, got {name}.")
    if target.base_model is target:
        raise ValueError(f"`target` must have a decoder beside its head, got {name}.")


def mask_token(target: PreTrainedModel) -> int:
    """The target's mask, padding or end-of-text token, the first that it has.

    Raises ValueError if it has none.
    """
    configs: tuple[Any, ...] = (target.config.get_text_config(decoder=True), target.generation_config)
    for key in ("mask_token_id", "pad_token_id", "eos_token_id"):
        for config in configs:
            value = getattr(config, key, None)
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, int) and 0 <= value < target.get_input_embeddings().weight.shape[0]:
                return value
    raise ValueError("`lora` needs a target that names a mask, padding or end-of-text token, to stand for masks.")
