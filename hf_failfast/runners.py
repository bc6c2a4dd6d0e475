"""One forward of a causal-LM body over a window of tokens, the same call for target and drafter."""

from typing import Any, Protocol

import torch
from transformers import PreTrainedConfig

from .cache import SlotCache, layer_windows


class CausalLM(Protocol):
    """The part of a transformers causal LM that a forward needs."""

    config: PreTrainedConfig

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, *, input_ids: torch.Tensor, logits_to_keep: int | torch.Tensor, **inputs: Any) -> Any: ...


class EagerRunner:
    """Runs the model as it is, writing K/V into slots.

    A mask is one rule: row i of the window sees the slots < limit[i]. Without limits the window is causal and
    transformers builds the mask, so that any attention implementation works for the target.

    hidden_layers: indices into the model's `hidden_states`; `self.hidden_states` then holds them, side by side, for
        every row of the last window (1, q, width of all), whichever rows' logits were asked for.
    """

    def __init__(self, model: CausalLM, hidden_layers: tuple[int, ...] = ()) -> None:
        config = model.config.get_text_config(decoder=True)
        self.model = model
        self.windows = layer_windows(config)
        self.layer_types = getattr(config, "layer_types", None)
        self.is_eager_attention = config._attn_implementation == "eager"
        self.hidden_layers = hidden_layers
        self.hidden_states: torch.Tensor | None = None

    def new_cache(self, capacity: int) -> SlotCache:
        """Empty slots for `capacity` positions."""
        return SlotCache(len(self.windows), capacity)

    def __call__(
        self,
        input_ids: torch.Tensor,  # (1, q)
        cache: SlotCache,
        rows: int | torch.Tensor,  # the last `rows` rows, or row indices (r,)
        limit: torch.Tensor | None = None,  # (q,)
    ) -> torch.Tensor:
        """Feeds tokens behind the cached ones and returns the logits (1, r, vocabulary) of the rows asked for."""
        start = cache.get_seq_length()
        end = start + input_ids.shape[1]
        position_ids = torch.arange(start, end, device=input_ids.device)
        outputs = self.model(
            input_ids=input_ids,
            position_ids=position_ids[None],
            attention_mask=None if limit is None else self._mask(position_ids, limit, end),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=rows,
            return_dict=True,
            **({"output_hidden_states": True} if self.hidden_layers else {}),
        )
        if self.hidden_layers:
            self.hidden_states = torch.cat([outputs.hidden_states[layer] for layer in self.hidden_layers], dim=-1)
        return outputs.logits

    def _mask(self, positions: torch.Tensor, limit: torch.Tensor, end: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """The 4-D mask; one per layer type where the model's layers differ in type."""
        if self.layer_types is None:
            return self._window_mask(positions, limit, end, self.windows[0])
        by_type = dict(zip(self.layer_types, self.windows, strict=False))
        return {name: self._window_mask(positions, limit, end, window) for name, window in by_type.items()}

    def _window_mask(self, positions: torch.Tensor, limit: torch.Tensor, end: int, window: int | None) -> torch.Tensor:
        slots = torch.arange(end, device=positions.device)
        visible = slots < limit[:, None]
        if window is not None:
            visible &= slots > positions[:, None] - window
        visible = visible[None, None]
        if not self.is_eager_attention:
            return visible
        dtype = self.model.dtype
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(
            ~visible, torch.finfo(dtype).min
        )
