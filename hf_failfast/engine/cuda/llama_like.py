"""Whether a model consists of the layers that the fused decoder computes: those of Llama, Mistral, Qwen2 and Qwen3.

The decoder repeats what transformers' modules do, so it asks for exactly those: a subclass, an adapter, a quantised
projection or a replaced forward may compute something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn

from ..causal_lm import CausalLM, DecoderParts, decoder_parts
from ..positions import rope_change
from ..slot_cache import layer_windows

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ACTIVATIONS = ("SiLUActivation", "SiLU")
_PROJECTIONS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


def layers(parts: DecoderParts) -> list[Any]:
    """The decoder layers that the body calls."""
    body: Any = parts.body
    return list(body.layers[: body.config.num_hidden_layers])


def obstacle(model: CausalLM) -> str | None:
    """Why the fused decoder cannot stand in for this model's layers; None if it can."""
    parts = decoder_parts(model)
    family = next((name for name in FAMILIES if parts and _is_of(name, "Model", parts.body)), None)
    if parts is None or family is None:
        return f"its layers are not those of {', '.join(FAMILIES[:-1])} or {FAMILIES[-1]}"
    reasons = _unknown_parts(model, parts, family), _unknown_layers(parts, family), _unfit_tensors(model, parts)
    return next(chain(*reasons), None)


def _is_of(family: str, kind: str, module: nn.Module) -> bool:
    """Whether a module is transformers' own of this family, its forward included."""
    home = f"transformers.models.{family.lower()}.modeling_{family.lower()}"
    own = type(module)
    return (
        (own.__module__, own.__name__) == (home, family + kind)
        and own.forward.__module__ == home
        and "forward" not in vars(module)
    )


def _is_hooked(module: nn.Module) -> bool:
    """Whether a forward of the module calls hooks that are not transformers' own, which collect hidden states."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(not (getattr(hook, "__module__", None) or "").startswith("transformers.") for hook in hooks)


def _is_plain(kind: type[nn.Module], module: nn.Module) -> bool:
    """Whether a module is torch's own of this kind, with an ordinary weight."""
    return type(module) is kind and "forward" not in vars(module) and type(module.weight) is nn.Parameter


def _described(module: nn.Module) -> str:
    own = type(module)
    return f"a {own.__module__}.{own.__name__}" + (" with another forward" if "forward" in vars(module) else "")


def _unknown_parts(model: CausalLM, parts: DecoderParts, family: str) -> Iterator[str]:
    """Parts around the layers that are not what the family has there."""
    body: Any = parts.body
    if isinstance(model, nn.Module) and not _is_of(family, "ForCausalLM", model):
        yield f"the model is {_described(model)}"
    if not _is_plain(nn.Embedding, parts.embedding) or parts.embedding.max_norm is not None:
        yield f"its embedding is {_described(parts.embedding)}"
    for name, kind in {"norm": "RMSNorm", "rotary_emb": "RotaryEmbedding"}.items():
        if not _is_of(family, kind, getattr(body, name)):
            yield f"`{name}` is {_described(getattr(body, name))}"
    if rope_change(body.config) is not None:
        yield "its rotary embeddings depend on the length of the text"
    if any(window is not None and window.is_chunk for window in layer_windows(body.config)):
        yield "its layers see chunks of the text"


def _unknown_layers(parts: DecoderParts, family: str) -> Iterator[str]:
    """Parts of the layers that are not what the family has there."""
    places = {"": "DecoderLayer", "self_attn": "Attention", "mlp": "MLP"}
    places |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), "RMSNorm")
    if family == "Qwen3":
        places |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), "RMSNorm")
    for index, layer in enumerate(layers(parts)):
        unknown = [name for name, kind in places.items() if not _is_of(family, kind, layer.get_submodule(name))]
        unknown += [name for name in _PROJECTIONS if not _is_plain(nn.Linear, layer.get_submodule(name))]
        activation = layer.mlp.act_fn
        if type(activation).__name__ not in _ACTIVATIONS or "forward" in vars(activation):
            unknown.append("mlp.act_fn")
        if any(map(_is_hooked, layer.modules())):
            yield f"`layers.{index}` has hooks"
        for name in unknown:
            yield f"`{f'layers.{index}.{name}'.rstrip('.')}` is {_described(layer.get_submodule(name))}"


def _unfit_tensors(model: CausalLM, parts: DecoderParts) -> Iterator[str]:
    """Weights that the kernels cannot read as they are."""
    if model.dtype not in _DTYPES or parts.embedding.weight.dtype not in _DTYPES:
        yield f"its weights are in {model.dtype}, its embedding in {parts.embedding.weight.dtype}"
    seen: set[int] = set()
    for name, parameter in _parameters(parts):
        if type(parameter) is not nn.Parameter or parameter.dtype != model.dtype or not parameter.is_contiguous():
            yield f"`{name}` is not an ordinary contiguous parameter in {model.dtype}"
        if parameter.is_inference():
            yield f"`{name}` was made in inference mode"
        if id(parameter) in seen:
            yield f"`{name}` is shared with another part"
        seen.add(id(parameter))


def _parameters(parts: DecoderParts) -> Iterator[tuple[str, nn.Parameter]]:
    for index, layer in enumerate(layers(parts)):
        for name, parameter in layer.named_parameters(remove_duplicate=False):
            yield f"layers.{index}.{name}", parameter
    body: Any = parts.body
    yield from body.norm.named_parameters("norm")
