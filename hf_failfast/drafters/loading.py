"""From a checkpoint folder or Hub id to a drafter. Nothing of a checkpoint is ever executed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from ..config import FailFastConfig
from .base import DiffusionDrafter
from .masked import MaskedDrafter
from .shared import SharedBody
from .spec import DrafterSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Model types whose checkpoints hold a native body under another name: (native model type, spec, config key of the
# block size). Facts as published: Fast-dLLM v2 (arXiv 2509.26328) names no mask id in its config; it is the first id
# behind Qwen2.5's special tokens.
KNOWN_FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "Fast_dLLM_Qwen": ("qwen2", {"attention": "block_causal", "shift": 1, "mask_token_id": 151665}, "bd_size"),
}

# Keys that would point transformers to the checkpoint's own code, or to a class that is not there.
REMOTE_CODE_KEYS = ("auto_map", "architectures", "model_type")

# The decoder of a drafter that borrows its embedding is built without one of its own.
_NO_VOCABULARY = {"vocab_size": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}

SPEC_KEYS = ("attention", "shift", "mask_token_id", "block_size", "noise")


def load_drafter(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
    attention: str | None = None,
    block_size: int | None = None,
    shift: int | bool | None = None,
    mask_token_id: int | None = None,
    noise: str | None = None,
    **hub_kwargs: Any,
) -> DiffusionDrafter:
    """Loads a diffusion drafter from a checkpoint folder or Hub id.

    How the checkpoint drafts comes from its own config (drafters of this project, Fast-dLLM v2), or from the keyword
    arguments, which win: so any causal-LM checkpoint can be tried. See `DrafterSpec` for their meaning. `dtype="auto"`
    keeps the checkpoint's dtype; `device_map` and `hub_kwargs` (`revision`, `token`, `cache_dir`, ...) are those of
    `from_pretrained`.

    Raises:
        ValueError: the checkpoint's kind is unknown, its spec incomplete, or its weights do not fit its config.
    """
    # transformers' tables of all models are the slow part of its import; only loading needs them.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    given = {
        "attention": attention,
        "block_size": block_size,
        "shift": None if shift is None else int(shift),
        "mask_token_id": mask_token_id,
        "noise": noise,
    }
    config_dict, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub_kwargs)
    own = config_dict.pop("failfast", {})
    _check_model_type(config_dict.get("model_type"), CONFIG_MAPPING)
    model_type, spec = _spec(config_dict, own, {key: value for key, value in given.items() if value is not None})
    for key in REMOTE_CODE_KEYS:
        config_dict.pop(key, None)
    config = CONFIG_MAPPING[model_type].from_dict(config_dict)
    options = {key: own[key] for key in FailFastConfig.field_names() if key in own}
    model: PreTrainedModel | SharedBody
    if own.get("shared_embeddings"):
        model = _load_shared(name_or_path, config, spec, dtype, hub_kwargs)
        if device_map is not None:
            model.to(device_map)
    else:
        model = _load_native(name_or_path, config, dtype, device_map, hub_kwargs)
        _check_mask_embedding(model, spec)
    return MaskedDrafter(model.eval(), spec, FailFastConfig().with_options(options))


def _check_model_type(model_type: str | None, native: Collection[str]) -> None:
    if model_type not in KNOWN_FAMILIES and model_type not in native:
        raise ValueError(
            f"The checkpoint's `model_type` is {model_type!r}, which is neither native to transformers nor a known "
            f"drafter family ({sorted(KNOWN_FAMILIES)}); its own code is never run."
        )


def _spec(config: dict[str, Any], own: dict[str, Any], given: dict[str, Any]) -> tuple[str, DrafterSpec]:
    """(native model type, spec) of a checkpoint; keyword arguments win over the checkpoint."""
    model_type = str(config.get("model_type"))
    values: dict[str, Any] = {"shift": 0, "mask_token_id": config.get("mask_token_id")}
    if model_type in KNOWN_FAMILIES:
        model_type, family, block_key = KNOWN_FAMILIES[model_type]
        values |= family | {"block_size": config.get(block_key)}
    values |= {key: own[key] for key in SPEC_KEYS if key in own} | given
    if "attention" not in values:
        raise ValueError(
            f"The checkpoint (`model_type` {model_type!r}) does not say how it drafts: pass `attention=` "
            '("causal_canvas", "block_causal" or "bidirectional"), `shift=`, `mask_token_id=` and, for block_causal, '
            "`block_size=`."
        )
    return model_type, DrafterSpec(**values)


def _load_native(
    name_or_path: str | Path,
    config: PreTrainedConfig,
    dtype: torch.dtype | str,
    device_map: Any,
    hub_kwargs: dict[str, Any],
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        name_or_path,
        config=config,
        dtype=dtype,
        device_map=device_map,
        use_safetensors=True,
        output_loading_info=True,
        **hub_kwargs,
    )
    _check_weights(info["missing_keys"], info["unexpected_keys"])
    return model


def _load_shared(
    name_or_path: str | Path,
    config: PreTrainedConfig,
    spec: DrafterSpec,
    dtype: torch.dtype | str,
    hub_kwargs: dict[str, Any],
) -> SharedBody:
    """Layers without an embedding: the decoder is built with a vocabulary of one, which it never uses."""
    from transformers import AutoModel

    weights = load_file(cached_file(str(name_or_path), "model.safetensors", **hub_kwargs))
    mask_embedding = weights.pop("mask_embedding")
    draft_vocabulary = weights.pop("draft_vocabulary", None)
    decoder_config = type(config).from_dict(config.to_dict() | _NO_VOCABULARY)
    decoder = AutoModel.from_config(decoder_config, dtype=mask_embedding.dtype)
    decoder.config = config
    decoder_weights = {key.removeprefix("model."): value for key, value in weights.items()}
    result = decoder.load_state_dict(decoder_weights, strict=False)
    _check_weights([key for key in result.missing_keys if key != "embed_tokens.weight"], result.unexpected_keys)
    body = SharedBody(decoder, mask_embedding, spec, draft_vocabulary)
    return body if dtype == "auto" else body.to(dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype))


def _check_weights(missing: Any, unexpected: Any) -> None:
    if missing or unexpected:
        raise ValueError(
            "The checkpoint's weights do not fit its config: "
            f"missing {sorted(missing)[:8]}, unexpected {sorted(unexpected)[:8]}."
        )


def _check_mask_embedding(model: PreTrainedModel, spec: DrafterSpec) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if spec.mask_token_id is not None and spec.mask_token_id >= rows:
        raise ValueError(
            f"`mask_token_id` must be < {rows}, the drafter's embedding rows, but is {spec.mask_token_id}."
        )
