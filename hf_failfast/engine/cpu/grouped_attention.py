"""Attention that reads each K/V head once for all query heads of its group, in the place of SDPA on a CPU.

transformers copies K and V for each query head as soon as there is a mask, at a cost that grows with the text.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..causal_lm import PREFIX, CausalLM, attention_name

NAME = f"{PREFIX}grouped"

# The widest window whose groups are packed. SDPA works on blocks of 32 tokens; a wider window fills them by itself.
PACKED_WIDTH = 32

# The contexts that are open for a config, which all threads share; the last one to end restores its name.
_CONTEXTS: Counter[int] = Counter()
_LOCK = threading.Lock()

# Options of SDPA besides a mask.
_OTHERS = ("cache", "position_bias", "s_aux", "softcap")


def is_usable(model: CausalLM) -> bool:
    """Whether the model is on a CPU, groups its heads, and takes its attention from transformers' interface."""
    config = model.config.get_text_config(decoder=True)
    classes = {type(module) for module in model.modules()}
    interfaces = [each.is_backend_compatible() for each in classes if hasattr(each, "is_backend_compatible")]
    return (
        model.device.type == "cpu"
        and attention_name(model) == "sdpa"
        and getattr(config, "num_key_value_heads", None) not in (None, config.num_attention_heads)
        and bool(interfaces)
        and all(interfaces)
    )


def grouped_attention(model: CausalLM) -> AbstractContextManager[None]:
    """In this context plain `generate` reads the K/V of a group once, as drafted decoding always does.

    Raises ValueError on a model that is not on a CPU, has no groups, or computes its attention in another way.
    """
    if not is_usable(model):
        raise ValueError(
            "`grouped_attention` needs a model on a CPU with `attn_implementation='sdpa'` whose query heads share key "
            "heads."
        )
    return in_place_of_sdpa(model)


@contextmanager
def in_place_of_sdpa(model: CausalLM) -> Iterator[None]:
    """In this context our attention replaces the model's SDPA in every thread; the results are the same.

    Windows of several tokens need a mask from the caller, since some models build theirs by the attention's name.
    """
    _register()
    config = model.config.get_text_config(decoder=True)
    with _LOCK:
        _CONTEXTS[id(config)] += 1
        config._attn_implementation = NAME
    try:
        yield
    finally:
        with _LOCK:
            _CONTEXTS[id(config)] -= 1
            if not _CONTEXTS[id(config)]:
                del _CONTEXTS[id(config)]
                config._attn_implementation = "sdpa"


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface  # both import the whole of modelling
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)  # for the forwards of other threads


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,  # (B, H, q, D)
    key: torch.Tensor,  # (B, H / group, S, D)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # (B, 1, q, S); None where a single token sees all
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    num_rows, num_heads, width, _ = query.shape
    num_groups = key.shape[1]
    if (
        (width > 1 if attention_mask is None else attention_mask.shape[1:3] != (1, width))
        or num_groups == num_heads
        or dropout
        or any(options.get(name) is not None for name in _OTHERS)
        or torch.compiler.is_compiling()
    ):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        attended, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return attended, None
    # Each thread works on its own heads. A single token is slow in any case: in bf16 slower than several.
    if width == 1 or (width <= PACKED_WIDTH and num_rows * num_groups >= torch.get_num_threads()):
        packed = query.reshape(num_rows, num_groups, -1, query.shape[-1])
        mask = None if attention_mask is None else attention_mask.repeat(1, 1, num_heads // num_groups, 1)
        attended = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
        attended = attended.reshape(num_rows, num_heads, width, -1)
    else:
        attended = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
        )
    return attended.transpose(1, 2).contiguous(), None
