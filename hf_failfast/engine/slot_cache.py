"""K/V slots: written in place, rolled back by moving a length."""

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from ..compatibility import SHARING_LAYER
from .ragged import indices

# The fewest slots that are allocated, if the capacity allows them.
FIRST_SLOTS = 256

# K/V of one sequence: keys and values (heads, length, head_dim) of every layer.
RowStates = list[tuple[torch.Tensor, torch.Tensor]]


class LayerWindow(NamedTuple):
    """How far back the tokens of a layer see: `size` slots, their own included, or to the start of their chunk, where
    positions are cut into chunks of that size."""

    size: int
    is_chunk: bool = False

    def first(self, positions: torch.Tensor) -> torch.Tensor:
        """The first slot that a token at each position sees; less than 0 where that is any."""
        return positions - positions % self.size if self.is_chunk else positions - self.size + 1


class Cursor:
    """Number of valid slots per sequence, which is where the next pass writes. All layers of a cache share it.

    start, end: those of the shortest and of the longest sequence.
    """

    def __init__(self, num_rows: int) -> None:
        self.move([0] * num_rows)

    def move(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.start, self.end = min(lengths), max(lengths)
        self._index: tuple[torch.Tensor, torch.Tensor] | None = None

    def index(self, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows (rows, 1) and slots (rows, width) that a pass over `width` tokens writes."""
        if self._index is None or self._index[1].shape[1] != width or self._index[1].device != device:
            rows = torch.arange(len(self.lengths), device=device)[:, None]
            self._index = rows, indices(self.lengths, width, device)
        return self._index


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (rows, heads, slots, head_dim); slot i of a sequence holds its position i.

    The buffers start as zeros, not as uninitialised memory: a masked NaN would still poison the attention. They double
    when they are full, so that memory follows the text's length and not the longest possible one.
    """

    is_sliding = False

    def __init__(self, cursor: Cursor, capacity: int) -> None:
        super().__init__()
        self.cursor = cursor
        self.capacity = capacity
        self.num_written = 0  # slots up to the end of the last update

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys = key_states.new_zeros(*key_states.shape[:2], 0, key_states.shape[-1])
        self.values = value_states.new_zeros(*value_states.shape[:2], 0, value_states.shape[-1])
        self.is_initialized = True

    def reserve(self, key_states: torch.Tensor, value_states: torch.Tensor, num_slots: int) -> None:
        """Makes room for `num_slots` slots of states like these."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        missing = num_slots - self.keys.shape[2]
        if missing > 0:
            spare = min(self.capacity, max(2 * num_slots, FIRST_SLOTS)) - num_slots
            self.keys, self.values = (
                torch.nn.functional.pad(states, (0, 0, 0, missing + max(spare, 0)))
                for states in (self.keys, self.values)
            )

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes q new entries (rows, heads, q, head_dim) after the valid ones of each sequence; returns views up to
        the end of the longest sequence. The lengths do not change: see `SlotCache.advance`."""
        width = key_states.shape[-2]
        start, end = self.cursor.start, self.cursor.end + width
        self.num_written = end
        if not self.is_initialized or end > self.keys.shape[2]:
            self.reserve(key_states, value_states, end)
        if start + width == end:
            self.keys.narrow(2, start, width).copy_(key_states)
            self.values.narrow(2, start, width).copy_(value_states)
        else:
            row, slot = self.cursor.index(width, key_states.device)
            self.keys[row, :, slot] = key_states.transpose(1, 2)
            self.values[row, :, slot] = value_states.transpose(1, 2)
        return self.keys.narrow(2, 0, end), self.values.narrow(2, 0, end)

    def get_seq_length(self) -> int:
        return self.cursor.end

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return self.capacity

    # transformers before 5.20 asks for the capacity under this name.
    get_max_cache_shape = get_max_length


class SlotCache(Cache):
    """One `SlotLayer` per decoder layer that stores K/V. Sliding-window layers keep all slots too; the mask hides the
    old ones.

    capacity: the slots a sequence is expected to fill at most; no more are allocated ahead of need.
    position_bound: tokens of a batch that count are at positions below it; what is beyond is padding, or of a sequence
        that no one asks about any more. None: padding may be at any position.
    """

    layers: list[SlotLayer]

    def __init__(self, num_layers: int, capacity: int, num_rows: int = 1, position_bound: int | None = None) -> None:
        self.cursor = Cursor(num_rows)
        self.position_bound = position_bound
        self.is_checked = False
        super().__init__(layers=[SlotLayer(self.cursor, capacity) for _ in range(num_layers)])

    @property
    def lengths(self) -> list[int]:
        """The valid slots of each sequence."""
        return self.cursor.lengths

    def advance(self, count: int) -> None:
        """Makes valid the `count` entries that a pass has written after each sequence's valid ones."""
        self.cursor.move([length + count for length in self.lengths])

    def check(self) -> None:
        """Raises ValueError unless the first pass, which has just ended, has stored its K/V in every layer."""
        missing = [index for index, layer in enumerate(self.layers) if layer.num_written != self.cursor.end]
        if missing:
            raise ValueError(
                f"A model whose forward stores nothing in the cache (here in {len(missing)} of {len(self.layers)} "
                "layers) is not supported by hf_failfast: it has none, or `is_decoder=False`, or it trains with "
                "gradient checkpointing, which `model.eval()` ends."
            )
        self.is_checked = True

    def rollback(self, lengths: int | Sequence[int]) -> None:
        """Forgets each sequence's slots from its length on. Nothing is moved or cleared: the next pass overwrites."""
        lengths = [lengths] * len(self.lengths) if isinstance(lengths, int) else list(lengths)
        for old, new in zip(self.lengths, lengths, strict=True):
            assert new <= old, f"cannot roll back {old} slots to {new}"
        if lengths != self.lengths:
            self.cursor.move(lengths)

    def gather(self, starts: Sequence[int], places: Sequence[Sequence[int]]) -> None:
        """Moves the slots `starts[b]` + `places[b]` of each sequence to `starts[b]`, `starts[b]` + 1 and so on."""
        moved = [
            (row, start, list(of_row))
            for row, (start, of_row) in enumerate(zip(starts, places, strict=True))
            if list(of_row) != list(range(len(of_row)))
        ]
        if not moved:
            return
        # What was written in inference mode cannot be overwritten outside of it.
        with torch.inference_mode() if self.layers[0].keys.is_inference() else torch.no_grad():
            for row, start, of_row in moved:
                index = start + torch.tensor(of_row, device=self.layers[0].keys.device)
                for layer in self.layers:
                    for states in (layer.keys, layer.values):
                        states[row, :, start : start + len(of_row)] = states[row][:, index.to(states.device)]

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all other sequences."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[list(rows)], layer.values[list(rows)]
        self.cursor.move([self.lengths[row] for row in rows])

    def row(self, row: int) -> RowStates:
        """The valid K/V of a sequence, as views."""
        end = self.lengths[row]
        return [(layer.keys[row, :, :end], layer.values[row, :, :end]) for layer in self.layers]

    def adopt(self, other: "SlotCache", length: int, row: int = 0, source: int = 0) -> None:
        """Fills the empty slots of a sequence with the first `length` valid ones of `source`, a sequence of another
        cache of the same model."""
        length = min(length, other.lengths[source])
        if length:
            for mine, theirs in zip(self.layers, other.layers, strict=True):
                shape = (len(self.lengths), -1, -1, -1)
                mine.reserve(theirs.keys[:1].expand(shape), theirs.values[:1].expand(shape), length)
                mine.keys[row, :, :length] = theirs.keys[source, :, :length]
                mine.values[row, :, :length] = theirs.values[source, :, :length]
            self.cursor.move([length if index == row else old for index, old in enumerate(self.lengths)])

    def load(self, past: Cache, columns: Sequence[torch.Tensor]) -> None:
        """Fills empty slots with the K/V of an earlier call's cache.

        columns: per sequence the visible columns of the text, ascending; the cache holds K/V by column.

        A sliding-window layer has kept the newest entries only; the older slots stay zero, and the mask hides them.
        """
        stored = int(past.get_seq_length())
        visible = [row[row < stored] for row in columns]
        for slots, layer in zip(self.layers, storing_layers(past), strict=True):
            first = max(stored - layer.keys.shape[-2], 0)  # the oldest column that the layer still holds
            slots.reserve(layer.keys, layer.values, max(len(row) for row in visible))
            for index, row in enumerate(visible):
                kept = row[row >= first] - first
                slot = slice(len(row) - len(kept), len(row))
                slots.keys[index, :, slot] = layer.keys[index, :, kept]
                slots.values[index, :, slot] = layer.values[index, :, kept]
        self.cursor.move([len(row) for row in visible])


class SharedSlots:
    """The slots of a generation's target, for a session that drafts with the target's own K/V.

    The generation alone keeps them alive: `cache` is None before it has some, and after its end.
    """

    def __init__(self) -> None:
        self._cache: weakref.ref[SlotCache] | None = None

    def show(self, cache: SlotCache) -> None:
        """The generation has made them."""
        self._cache = weakref.ref(cache)

    @property
    def cache(self) -> SlotCache | None:
        return None if self._cache is None else self._cache()


def store(past: Cache, rows: Sequence[RowStates], columns: Sequence[torch.Tensor], length: int) -> None:
    """Appends to an earlier call's cache all sequences' K/V up to column `length`; hidden columns become zeros.

    columns: per sequence the visible columns of the text, ascending, as in `SlotCache.load`.
    """
    stored = int(past.get_seq_length())
    for index in range(len(rows[0])):
        new = []
        for kind in (0, 1):
            states = rows[0][index][kind]
            heads, _, head_dim = states.shape
            by_column = states.new_zeros(len(rows), heads, length - stored, head_dim)
            for row, (layers, visible) in enumerate(zip(rows, columns, strict=True)):
                visible = visible[: layers[index][kind].shape[1]]
                wanted = (visible >= stored) & (visible < length)
                by_column[row, :, visible[wanted] - stored] = layers[index][kind][:, : len(visible)][:, wanted]
            new.append(by_column)
        past.update(*new, index)


def storing_layers(past: Cache) -> list[Any]:
    """A cache's layers, but those at the end that store nothing since they read what an earlier one has stored."""
    layers = list(past.layers)
    while layers and type(layers[-1]) is SHARING_LAYER:
        layers.pop()
    return layers


def layer_windows(config: PreTrainedConfig) -> list[LayerWindow | None]:
    """Each decoder layer's window; None: full attention. Raises ValueError if slots cannot hold a state."""
    windows: list[LayerWindow | None] = []
    layers = storing_layers(DynamicCache(config=config))
    # To a cache, a chunk is a sliding window of the same size: the config tells them apart.
    types = getattr(config, "layer_types", None) or [
        "sliding_attention" if getattr(config, "sliding_window", None) else "chunked_attention"
    ] * len(layers)
    for layer, layer_type in zip(layers, types, strict=False):
        if type(layer) is DynamicLayer:
            windows.append(None)
        elif type(layer) is DynamicSlidingWindowLayer:
            windows.append(LayerWindow(layer.sliding_window, layer_type == "chunked_attention"))
        else:
            raise ValueError(
                f"`{config.model_type}` keeps {type(layer).__name__} state, which cannot be rolled back by slots; "
                "supported are full and sliding-window attention layers. For such a target use "
                "`hf_failfast.assisted_generate`, which drafts in transformers' own loop."
            )
    return windows
