"""What the engine asks of a model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from transformers import PreTrainedConfig

PREFIX = "hf_failfast_"  # of the names of attention implementations that are ours


class CausalLM(Protocol):
    """The part of a transformers causal LM that a forward needs."""

    config: PreTrainedConfig

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def modules(self) -> Iterator[torch.nn.Module]: ...

    def __call__(self, *, input_ids: torch.Tensor, logits_to_keep: int | torch.Tensor, **inputs: Any) -> Any: ...


def attention_name(model: CausalLM) -> str | None:
    """The model's attention implementation; another thread may just have put one of ours in the place of SDPA."""
    name: str | None = model.config.get_text_config(decoder=True)._attn_implementation
    return "sdpa" if name is not None and name.startswith(PREFIX) else name


def takes_logits_to_keep(model: CausalLM) -> bool:
    """Whether the forward can leave out logits, as transformers itself finds it out; remote code often cannot."""
    forward = getattr(model, "forward", type(model).__call__)
    return "logits_to_keep" in inspect.signature(forward).parameters
