"""Our attention kernel for transformers' attention interface: a token sees a range of slots, given as two numbers,
and in a tree its ancestors, given as bits.

transformers' SDPA path with a mask copies K and V once per query head of a group; on a GPU the kernel reads them once,
and needs no mask in memory (`kernels.attention`).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .. import kernels
from ..causal_lm import PREFIX, CausalLM, attention_name
from ..slot_cache import LayerWindow
from ..window import Sight

NAME = f"{PREFIX}slots"

# A model's layers look up their attention by a name in a config that all threads share.
_NAMED = threading.RLock()

# Options of an attention besides a mask that the kernel does not support.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


def as_mask(positions: torch.Tensor, sight: Sight, window: LayerWindow | None) -> torch.Tensor:
    """Replaces a mask: the first slot that each token (B, q) sees, the end (exclusive) of its slots, and in a tree the
    bits of those it sees from there on, as (B, 1, 2 or 3, q), four dimensions so that transformers takes it as it is.

    window: how far back the tokens of the layer see; None for all.
    """
    first = torch.zeros_like(positions) if window is None else window.first(positions).clamp(min=0)
    seen = [first, sight.limit.expand_as(positions)]
    return torch.stack(seen if sight.ancestors is None else [*seen, sight.ancestors], dim=1)[:, None]


def is_usable(model: CausalLM) -> bool:
    """Whether the kernel may replace the model's attention: fp32 models keep SDPA, and with it SDPA's results."""
    return (
        attention_name(model) == "sdpa"
        and model.dtype in (torch.float16, torch.bfloat16)
        and kernels.is_fused(model.device)
    )


@contextmanager
def slot_attention(model: CausalLM) -> Iterator[None]:
    """In this context SDPA layers take `as_mask`'s mask; other threads' calls, with ordinary masks, do not change."""
    from transformers import AttentionInterface, AttentionMaskInterface  # both import the whole of modelling
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    configs = {id(config): config for module in model.modules() if (config := vars(module).get("config")) is not None}
    with _NAMED:
        changed = [config for config in configs.values() if getattr(config, "_attn_implementation", None) == "sdpa"]
        for config in changed:
            config._attn_implementation = NAME
        try:
            yield
        finally:
            for config in changed:
                config._attn_implementation = "sdpa"


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,  # (B, H, q, D)
    key: torch.Tensor,  # (B, H / group, S, D)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if attention_mask is None or attention_mask.dtype != torch.long:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return attended, None
    asked = [name for name in _UNSUPPORTED if options.get(name) is not None]
    if asked or key.shape[-1] != value.shape[-1]:
        raise ValueError(f"the attention kernel supports neither {asked} nor values of another width than keys")
    first, limit, *ancestors = attention_mask[:, 0].unbind(1)
    attended = _by_kernel if type(query) is torch.Tensor else _as_operator()
    return attended(query, key, value, limit, first, scaling, *ancestors), None


def _by_kernel(*arguments: Any) -> torch.Tensor:
    """(B, q, H, D), which is how the kernel lays it out."""
    return kernels.attention(*arguments).transpose(1, 2).contiguous()


@functools.cache
def _as_operator() -> Callable[..., torch.Tensor]:
    """`_by_kernel` as one operator, which stays a call of its own in what torch traces and compiles."""

    def attended(query: torch.Tensor, *others: Any) -> torch.Tensor:
        return _by_kernel(query if query.stride(-1) == 1 else query.contiguous(), *others)

    given = "Tensor query, Tensor key, Tensor value, Tensor limit, Tensor first, float? scale, Tensor? ancestors=None"
    name = "hf_failfast::slot_attention"
    # It takes tensors of any strides: with others than those of the trace they would be copied, all slots of them.
    options: Any = {"schema": f"({given}) -> Tensor", "tags": (torch.Tag.flexible_layout,)}
    operator = torch.library.custom_op(name, attended, mutates_args=(), **options)
    operator.register_fake(lambda query, *_: query.new_empty(query.transpose(1, 2).shape))
    return operator
