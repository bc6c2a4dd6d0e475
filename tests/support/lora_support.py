"""Random LoRAs in PEFT's format, and what a target computes with one."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

CONFIG: dict[str, Any] = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": "someone/a-target",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "rank_pattern": {},
    "revision": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_rslora": False,
}
PREFIX = "base_model.model."
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def layers_of(target: PreTrainedModel, ends: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """Name -> (in, out) of the target's linear layers but its head; those with the given ends of names, if any."""
    found = {}
    for name, module in target.named_modules():
        is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if is_linear and module is not target.get_output_embeddings() and (not ends or name.endswith(tuple(ends))):
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            sizes = tuple(weight.shape)
            found[name] = sizes[::-1] if isinstance(module, nn.Linear) else sizes
    return found


def save_lora(
    folder: Path, target: PreTrainedModel, ends: Sequence[str] = (), seed: int = 0, size: float = 0.3, **config: Any
) -> Path:
    """A LoRA of the target's layers whose updates change what it says."""
    values = CONFIG | config
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    layers = layers_of(target, ends)
    for name, (inputs, outputs) in layers.items():
        rank = values["r"]
        tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * size
        tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * size
    folder.mkdir(parents=True, exist_ok=True)
    values.setdefault("target_modules", sorted({name.rpartition(".")[2] for name in layers}))
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@torch.no_grad()
def logits_with(
    target: PreTrainedModel, folder: Path, ids: torch.Tensor, noise: torch.Tensor, scale: float = 2.0
) -> torch.Tensor:
    """The logits (1, n, V) of one pass over `ids` (1, n), with PEFT's formula on the rows `noise` (n,)."""
    model, tensors = copy.deepcopy(target), load_file(folder / "adapter_model.safetensors")

    def hook(name: str) -> Any:
        down, up = (tensors[f"{PREFIX}{name}.lora_{part}.weight"].float() for part in "AB")

        def add(_: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output + scale * (arguments[0] @ down.T @ up.T) * noise[:, None]

        return add

    for name in layers_of(target):
        if f"{PREFIX}{name}.lora_A.weight" in tensors:
            model.get_submodule(name).register_forward_hook(hook(name))
    return model(ids).logits
