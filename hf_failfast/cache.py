"""K/V slots of fixed size: written in place, rolled back by moving a length."""

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (batch, heads, capacity, head_dim); slot i holds position i.

    The buffers start as zeros, not as uninitialised memory: a masked NaN would still poison the attention.
    """

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        batch, heads, _, head_dim = key_states.shape
        self.keys = key_states.new_zeros(batch, heads, self.capacity, head_dim)
        self.values = value_states.new_zeros(*value_states.shape[:2], self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes q new entries (batch, heads, q, head_dim) behind the valid ones; returns views of all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        assert end <= self.capacity, f"slot {end} is beyond the capacity {self.capacity}"
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return self.capacity

    # transformers before 5.20 asks for the capacity under this name.
    get_max_cache_shape = get_max_length


class SlotCache(Cache):
    """One `SlotLayer` per decoder layer. Sliding-window layers keep all slots too; the mask hides the old ones."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[SlotLayer(capacity) for _ in range(num_layers)])

    def rollback(self, length: int) -> None:
        """Forgets every slot from `length` on. Nothing is moved or cleared: the next pass overwrites them."""
        for layer in self.layers:
            assert length <= layer.length, f"cannot roll back {layer.length} slots to {length}"
            layer.length = length

    def load(self, past: Cache, padding: int) -> None:
        """Fills empty slots with the K/V of an earlier call's cache, without those of its `padding` leading tokens.

        A sliding-window layer has kept the newest entries only; the older slots stay zero, and the mask hides them.
        """
        length = past.get_seq_length() - padding
        for slots, layer in zip(self.layers, past.layers, strict=True):
            kept = min(layer.keys.shape[-2], length)
            slots.lazy_initialization(layer.keys, layer.values)
            slots.keys[:, :, length - kept : length] = layer.keys[:, :, -kept:]
            slots.values[:, :, length - kept : length] = layer.values[:, :, -kept:]
            slots.length = length

    def store(self, past: Cache, padding: int) -> None:
        """Appends to an earlier call's cache what it does not hold yet; hidden padding becomes zeros."""
        stored = past.get_seq_length()
        for index, slots in enumerate(self.layers):
            new = [slots.keys[:, :, : slots.length], slots.values[:, :, : slots.length]]
            if stored:
                new = [states[:, :, stored - padding :] for states in new]
            elif padding:
                new = [torch.nn.functional.pad(states, (0, 0, padding, 0)) for states in new]
            past.update(*new, index)


def layer_windows(config: PreTrainedConfig) -> list[int | None]:
    """Each decoder layer's sliding window (None: full attention). Raises ValueError on state slots cannot hold."""
    windows: list[int | None] = []
    for layer in DynamicCache(config=config).layers:
        if type(layer) is DynamicLayer:
            windows.append(None)
        elif type(layer) is DynamicSlidingWindowLayer:
            windows.append(layer.sliding_window)
        else:
            raise ValueError(
                f"`{config.model_type}` keeps {type(layer).__name__} state, which cannot be rolled back by slots; "
                "supported are full and sliding-window attention layers."
            )
    return windows
