"""What the engine asks of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.modules.module import _has_any_global_hook
from transformers import PreTrainedConfig

PREFIX = "hf_failfast_"  # of the names of our own attention implementations
IS_OWN = "is_hf_failfast"  # an attribute of hooks that are part of a forward of ours


class CausalLM(Protocol):
    """The part of a transformers causal LM that a forward needs.

    Called with `states` and `added` where the window has some: see `Window`.
    """

    config: PreTrainedConfig

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def modules(self) -> Iterator[torch.nn.Module]: ...

    def __call__(self, *, input_ids: torch.Tensor, logits_to_keep: int | torch.Tensor, **inputs: Any) -> Any: ...


class DecoderParts(NamedTuple):
    """A causal LM as its parts, for code that computes the middle one in its own way."""

    embedding: torch.nn.Module
    body: torch.nn.Module  # decoder layers and final norm, of transformers
    head: Callable[[torch.Tensor], torch.Tensor]  # the logits of hidden states (B, r, hidden)
    mask_token_id: int | None = None  # an id that the embedding need not know
    mask_embedding: torch.Tensor | None = None  # (hidden,), that id's


def decoder_parts(model: CausalLM) -> DecoderParts | None:
    """The model's parts: as it names them itself, or where transformers' causal LMs have them; None if nowhere."""
    named = getattr(model, "decoder_parts", None)
    if named is not None:
        parts: DecoderParts = named()
        return parts
    body, head = getattr(model, "model", None), getattr(model, "lm_head", None)
    embedding = getattr(body, "embed_tokens", None)
    if embedding is None or body is None or head is None:
        return None
    return DecoderParts(embedding, body, head)


def execution_device(model: torch.nn.Module) -> torch.device:
    """Where a model or module computes: where its weights are, or if these are offloaded (`meta`), where the hooks of
    accelerate bring them."""
    device = next((weights.device for weights in model.parameters()), torch.device("cpu"))
    if device.type != "meta":
        return device
    hooks = [getattr(module, "_hf_hook", None) for module in model.modules()]
    each = (part for hook in hooks for part in getattr(hook, "hooks", [hook]))
    named = (getattr(hook, "execution_device", None) for hook in each)
    return torch.device(next((name for name in named if name is not None), device))


def in_place(module: torch.nn.Module) -> AbstractContextManager[None]:
    """In this context the weights of an offloaded module are where it computes."""
    if not hasattr(module, "_hf_hook"):
        return nullcontext()
    from accelerate.utils import align_module_device

    context: AbstractContextManager[None] = align_module_device(module)
    return context


def attention_name(model: CausalLM) -> str | None:
    """The model's attention implementation; SDPA where one of ours replaces it, perhaps in another thread."""
    name: str | None = model.config.get_text_config(decoder=True)._attn_implementation
    return "sdpa" if name is not None and name.startswith(PREFIX) else name


def has_foreign_hooks(module: torch.nn.Module) -> bool:
    """Whether a forward of this very module calls hooks of the user's. transformers' own collect hidden states;
    ours are part of the model."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(
        not (getattr(hook, "__module__", None) or "").startswith("transformers.") and not hasattr(hook, IS_OWN)
        for hook in hooks
    )


def is_watched(model: CausalLM) -> bool:
    """Whether code that is not the model's own may keep what the forwards of its parts compute."""
    if _has_any_global_hook():
        return True
    return any("forward" in vars(module) or has_foreign_hooks(module) for module in model.modules())


def has_several_states(config: PreTrainedConfig) -> bool:
    """Whether the hidden states of a layer are several per token, as in Gemma 3n."""
    return getattr(config, "altup_num_inputs", 1) > 1


def takes_logits_to_keep(model: CausalLM) -> bool:
    """Whether the forward can leave out logits, as transformers itself finds it out; remote code often cannot."""
    forward = getattr(model, "forward", type(model).__call__)
    return "logits_to_keep" in inspect.signature(forward).parameters
