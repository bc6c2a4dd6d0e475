"""What the engine asks of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from transformers import PreTrainedConfig

PREFIX = "hf_failfast_"  # of the names of our own attention implementations


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
    """The model's attention implementation; SDPA where one of ours replaces it, perhaps in another thread."""
    name: str | None = model.config.get_text_config(decoder=True)._attn_implementation
    return "sdpa" if name is not None and name.startswith(PREFIX) else name
