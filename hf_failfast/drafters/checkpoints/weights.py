"""Weights of a checkpoint into its body: once, in their dtype, every key accounted for, pickles refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import GenerationConfig
from transformers.utils import is_accelerate_available

from ...config import FailFastConfig
from ..bodies.borrowed import SharedBody
from ..bodies.fusion import StateFusion
from .reading import PICKLES, Checkpoint, check_format, find_file, weight_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..masked.session import DraftingOptions

# The decoder of a drafter that borrows its embedding is built without one of its own.
_NO_VOCABULARY = {"vocab_size": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


# safetensors' names of the dtypes that weights are stored in.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class LoadRequest:
    """What a loader makes a drafter of.

    config, options: how the drafter is to work; `options` are the default ones unless the family takes others.
    dtype, device_map, allow_pickle: of the weights, as in `load_drafter`.
    headers_only: names and shapes of the weights are checked, but none is read: all modules stay on the meta device.
        A repository of the Hub that is not at hand is not fetched, and its weights are taken to fit.
    """

    checkpoint: Checkpoint
    config: FailFastConfig
    options: DraftingOptions
    dtype: torch.dtype | str = "auto"
    device_map: Any = None
    allow_pickle: bool = False
    headers_only: bool = False

    @property
    def is_out_of_reach(self) -> bool:
        """Whether no weights are at hand, and none are to be fetched."""
        if not self.headers_only or Path(self.checkpoint.name).is_dir():
            return False
        hub_kwargs = self.checkpoint.hub_kwargs | {"local_files_only": True}
        names = (*self.checkpoint.safetensors, *PICKLES)
        return not any(find_file(self.checkpoint.name, name, hub_kwargs) for name in names)


def load_native(request: LoadRequest, auto_class: Any = None) -> PreTrainedModel:
    """The transformers model that is the checkpoint's body. Raises ValueError if the weights do not fit it."""
    from transformers import AutoModelForCausalLM

    checkpoint, family = request.checkpoint, request.checkpoint.family
    if request.is_out_of_reach:
        with torch.device("meta"):
            return (auto_class or AutoModelForCausalLM).from_config(checkpoint.native_config())
    check_format(checkpoint, request.allow_pickle)
    device_map, device = "meta" if request.headers_only else request.device_map, None
    if device_map is not None and not is_accelerate_available():  # which transformers needs for any `device_map`
        device_map, device = None, _one_device(device_map)
    # A drafter never generates, and for some checkpoints transformers cannot load the settings of their generation.
    defaults = {} if auto_class else {"generation_config": GenerationConfig()}
    try:
        model, info = (auto_class or AutoModelForCausalLM).from_pretrained(
            checkpoint.name,
            config=checkpoint.native_config(),
            **defaults,
            dtype=request.dtype,
            device_map=device_map,
            use_safetensors=None if request.allow_pickle else True,
            key_mapping=dict(family.weight_keys) or None,
            output_loading_info=True,
            **checkpoint.hub_kwargs,
        )
    except SafetensorError as error:
        raise ValueError(f"The weights of {checkpoint.name!r} are damaged or incomplete: {error}.") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(f"The weights of {checkpoint.name!r} do not fit its config: {error}") from error
    check_keys(info["missing_keys"], info["unexpected_keys"], family.ignored_weights)
    return model if device is None else model.to(device)


def load_shared(request: LoadRequest) -> SharedBody:
    """Layers without an embedding: the decoder is built with a vocabulary of one, which it never uses."""
    from transformers import AutoModel

    checkpoint = request.checkpoint
    weights = read_weights(checkpoint, headers_only=request.headers_only)
    mask_embedding = weights.pop("mask_embedding")
    draft_vocabulary = weights.pop("draft_vocabulary", None)
    fusion = _fusion(checkpoint, weights)
    config = checkpoint.native_config()
    decoder_config = type(config).from_dict(config.to_dict() | _NO_VOCABULARY)
    with mask_embedding.device:
        decoder = AutoModel.from_config(decoder_config, dtype=mask_embedding.dtype)
    config._attn_implementation = decoder.config._attn_implementation
    decoder.config = config
    result = decoder.load_state_dict(
        {key.removeprefix("model."): value for key, value in weights.items()}, strict=False
    )
    check_keys([key for key in result.missing_keys if key != "embed_tokens.weight"], result.unexpected_keys)
    body = SharedBody(decoder, mask_embedding, checkpoint.spec, draft_vocabulary, fusion)
    if request.device_map is not None and not request.headers_only:
        body.to(_one_device(request.device_map))
    return body if request.dtype == "auto" else body.to(as_dtype(request.dtype))


def _fusion(checkpoint: Checkpoint, weights: dict[str, torch.Tensor]) -> StateFusion | None:
    """The input fusion that the checkpoint's section names; its weights are taken out of `weights`."""
    section = checkpoint.section
    if not section.input_fusion:
        return None
    own = {name: weights.pop(name) for name in list(weights) if name.startswith("fusion.")}
    with torch.device("meta"):
        fusion = StateFusion(len(section.source_layers), checkpoint.native_config().hidden_size)
    stored = {name.removeprefix("fusion."): value for name, value in own.items()}
    expected = fusion.state_dict()
    if stored.keys() != expected.keys() or any(stored[name].shape != expected[name].shape for name in stored):
        raise ValueError(f"The checkpoint's weights do not fit its config: `input_fusion` with {sorted(own)}.")
    fusion.load_state_dict(stored, assign=True)
    return fusion


def load_into(module: nn.Module, request: LoadRequest, ignored: Iterable[str] = ()) -> None:
    """Puts the checkpoint's weights into a module on the meta device, without a second copy.

    ignored: regular expressions over stored buffers that the module computes itself.
    """
    if request.is_out_of_reach:
        return
    weights = read_weights(request.checkpoint, _one_device(request.device_map), request.headers_only)
    if request.dtype != "auto":
        dtype = as_dtype(request.dtype)
        weights = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    expected = module.state_dict()
    misfits = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    if misfits:
        raise ValueError(f"The checkpoint's weights do not fit its config: other shapes in {misfits[:8]}.")
    result = module.load_state_dict(weights, strict=False, assign=True)
    check_keys(result.missing_keys, result.unexpected_keys, ignored)


def read_weights(checkpoint: Checkpoint, device: Any = "cpu", headers_only: bool = False) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint in one safetensors file; on the meta device if only its header is to be read."""
    check_format(checkpoint, allow_pickle=False)
    path = checkpoint.file(checkpoint.safetensors[0])
    if path is None:
        raise ValueError(f"{checkpoint.name!r} has its weights in several files; this family comes in one.")
    if headers_only:
        shapes = weight_shapes(path).items()
        return {key: torch.empty(shape, dtype=_DTYPES[dtype], device="meta") for key, (shape, dtype) in shapes}
    try:
        weights: dict[str, torch.Tensor] = load_file(path, device=str(device))
    except SafetensorError as error:
        raise ValueError(f"The weight file {Path(path).name} is damaged or incomplete: {error}.") from error
    return weights


def _one_device(device_map: Any) -> str:
    """The device that a `device_map` means for a body of one piece."""
    if isinstance(device_map, dict):
        device_map = next(iter(device_map.values()))
    if device_map is None:
        return "cpu"
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"
    return f"cuda:{device_map}" if isinstance(device_map, int) else str(device_map)


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found: torch.dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    return found


def check_keys(missing: Iterable[str], unexpected: Iterable[str], ignored: Iterable[str] = ()) -> None:
    """Raises ValueError listing keys that are absent, or present and unknown."""
    patterns = list(ignored)
    unexpected = [key for key in unexpected if not any(re.search(pattern, key) for pattern in patterns)]
    missing = list(missing)
    if missing or unexpected:
        raise ValueError(
            "The checkpoint's weights do not fit its config: "
            f"missing {sorted(missing)[:8]} ({len(missing)} in all), "
            f"unexpected {sorted(unexpected)[:8]} ({len(unexpected)} in all)."
        )
