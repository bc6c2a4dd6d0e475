"""K/V at fixed addresses and the forwards captured on them, both kept between calls."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers.cache_utils import CacheLayerMixin

from ..ragged import is_even
from ..runner import Head
from ..slot_cache import SlotCache
from ..window import Window
from .capture import Arena, CudaGraphs, Outputs

if TYPE_CHECKING:
    from .compiled_layers import CompiledLayers
    from .fused_decoder import FusedDecoder

logger = logging.getLogger(__name__)

# Wider windows are prefills: few, of any width, and not bound by launches.
MAX_WIDTH = 128
# The most slots that a sequence gets at fixed addresses; a longer text continues without graphs.
MAX_SLOTS = 16384
SLOT_STEP = 256


class Given(IntEnum):
    """What a window says of its tokens' sight; true if anything."""

    NOTHING = 0  # it is causal
    LIMITS = 1
    TREE = 2  # limits, ancestors and positions


class Shape(NamedTuple):
    """What a forward is captured for."""

    width: int  # tokens per sequence
    num_slots: int  # in sight
    num_read: int  # tokens of the window whose logits are computed
    is_limited: Given
    hidden_layers: tuple[int, ...]
    head: Head
    num_states: int | None  # given states among the tokens; None: the model takes none

    @classmethod
    def around(cls, window: Window, max_slots: int, hidden_layers: tuple[int, ...], head: Head) -> Shape:
        """The smallest shape that holds a window. Up to 16 tokens cost a GPU as much as one. Of a window with states
        only their number is rounded up: that of the other tokens takes few values."""
        width = window.input_ids.shape[1]
        num_states = None
        if window.states is None:
            width = _round_up(width)
        else:
            num_states = _round_up(window.states.shape[1])
            width += num_states - window.states.shape[1]
        num_slots = min(max(_power_of_two(max(window.starts) + width), SLOT_STEP), max_slots)
        num_read = min(_round_up(window.num_read), width)
        given = Given.NOTHING
        if window.sight is not None:
            given = Given.LIMITS if window.sight.ancestors is None else Given.TREE
        return cls(width, num_slots, num_read, given, hidden_layers, head, num_states)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _round_up(number: int) -> int:
    return number if number == 1 else max(_power_of_two(number), 16)


class ShownLayer(CacheLayerMixin):
    """A layer of `StaticSlots` as a captured forward sees it: the same slots in sight at every replay."""

    is_sliding = False

    def __init__(
        self,
        keys: torch.Tensor,  # (B, heads, slots, head_dim)
        values: torch.Tensor,
        rows: torch.Tensor,  # (B, 1) and (B, q): where the window's K/V go
        slots: torch.Tensor,
        num_slots: int,
    ) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self.rows, self.slots = rows, slots
        self.num_slots = num_slots
        self.is_written = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The slots are there already."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.is_written = True
        self.keys[self.rows, :, self.slots] = key_states.transpose(1, 2)
        self.values[self.rows, :, self.slots] = value_states.transpose(1, 2)
        return self.keys[:, :, : self.num_slots], self.values[:, :, : self.num_slots]

    def get_seq_length(self) -> int:
        return self.num_slots - self.slots.shape[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_slots, 0

    def get_max_length(self) -> int:
        return self.num_slots

    # transformers before 5.20 asks for the capacity under this name.
    get_max_cache_shape = get_max_length


class CapturedForward:
    """One forward with its inputs at fixed addresses; captured by `capture`, then called any number of times.

    Given states lie before the tokens, so that the model finds them at its first positions; padding follows both, but
    here it is between them, and only its slots are after those of the tokens: see `places`.
    """

    def __init__(self, shape: Shape, window: Window, device: torch.device) -> None:
        num_rows = len(window.input_ids)
        self.shape = shape
        self.content = ""  # what computes it, in words
        self.states: torch.Tensor | None = None
        self.added: torch.Tensor | None = None
        if window.states is not None and shape.num_states is not None:
            self.states = window.states.new_zeros(num_rows, shape.num_states, *window.states.shape[2:])
            self.num_states = torch.zeros(1, dtype=torch.long, device=device)
        if window.added is not None:
            self.added = torch.zeros_like(window.added)
        self.input_ids = torch.zeros(num_rows, shape.width, dtype=torch.long, device=device)
        self.starts = torch.zeros(num_rows, 1, dtype=torch.long, device=device)
        self.limit = torch.ones(num_rows, shape.width, dtype=torch.long, device=device)
        self.ancestors = torch.zeros(num_rows, shape.width, dtype=torch.long, device=device)
        self.positions = torch.zeros(num_rows, shape.width, dtype=torch.long, device=device)
        self.read = torch.zeros(shape.num_read, dtype=torch.long, device=device)

    def fill(self, window: Window) -> None:
        """Copies a window to where the graph reads it.

        The rest of an earlier call stays as padding: valid ids, tokens of the window, limits of at least one slot.
        """
        width = window.input_ids.shape[1]
        num_states = padding = 0
        if window.states is not None and self.states is not None:
            num_states, padding = window.states.shape[1], self.shape.width - width
            self.states[:, :num_states] = window.states
            self.num_states.fill_(num_states)
        if window.added is not None and self.added is not None:
            self.added.copy_(window.added)
        own = slice(num_states + padding, width + padding)
        self.input_ids[:, own] = window.input_ids[:, num_states:]
        if is_even(window.starts):
            self.starts.fill_(window.starts[0])  # the launch carries the number: no copy from the host
        else:
            self.starts.copy_(torch.tensor(window.starts)[:, None])
        if isinstance(window.read, int):
            torch.arange(own.stop - window.read, own.stop, out=self.read[: window.read])
        else:
            self.read[: window.num_read] = window.read + padding if padding else window.read
        if window.sight is not None:
            self.limit[:, own] = window.sight.limit[..., num_states:]
            if window.sight.ancestors is not None and window.positions is not None:
                self.ancestors[:, own] = window.sight.ancestors
                self.positions[:, own] = window.positions

    def places(self) -> torch.Tensor:
        """The slots that the tokens are written to, (B, width)."""
        order = torch.arange(self.shape.width, device=self.starts.device)
        if self.states is not None:
            room = self.states.shape[1]
            after = order + self.shape.width - room
            given = torch.where(order < self.num_states, order, after)
            order = torch.where(order < room, given, order - room + self.num_states)
        return self.starts + order

    def capture(
        self, forward: Callable[[], Outputs], plain: Callable[[], Outputs], graphs: CudaGraphs, arena: Arena
    ) -> None:
        """Captures `forward`, which must read these inputs and return the logits, the hidden states if any, and the
        head's results. Raises RuntimeError if logits or hidden states differ from those of `plain`."""
        expected = plain()
        self._replay, outputs = graphs.capture(forward, arena)
        self._replay()
        self._outputs = outputs[1:]  # the head has read the logits
        compared = 1 + bool(self.shape.hidden_layers)
        if not all(map(_is_close, outputs[:compared], expected)):
            raise RuntimeError("the captured forward computes something else than the plain one")

    def replay(self) -> Outputs:
        """The outputs for the filled inputs, as copies: the next replay of any graph overwrites the originals."""
        self._replay()
        return tuple(output.clone() for output in self._outputs)


def _is_close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether they are equal up to the rounding of many layers, relative to the tensor's maximum: a wrong slot or
    position differs far more."""
    bound = expected.float().nan_to_num().abs().max() * (1e-3 if expected.dtype == torch.float32 else 0.1)
    return bool(((actual.float() - expected.float()).nan_to_num().abs() <= bound).all())


def _widened(states: torch.Tensor, num_slots: int) -> torch.Tensor:
    return states.new_zeros(*states.shape[:2], num_slots, states.shape[3])


class StaticSlots:
    """K/V at fixed addresses for one cache at a time, and the forwards captured on them."""

    def __init__(
        self,
        cache: SlotCache,
        num_slots: int,
        arena: Arena,
        fingerprint: tuple[object, ...],
        decoder: FusedDecoder | str,
    ) -> None:
        self.buffers = [(_widened(layer.keys, num_slots), _widened(layer.values, num_slots)) for layer in cache.layers]
        self.num_rows = len(cache.lengths)
        self.num_slots = num_slots
        self.arena = arena
        self.fingerprint = fingerprint  # of the model as it was captured
        self.decoder = decoder  # what stands in for the model's layers, or why nothing; the graphs read its tensors
        self.forwards: dict[Shape, CapturedForward] = {}

    def lend(self, cache: SlotCache) -> None:
        """Makes the buffers a cache's memory, with what the cache holds. The rest is zero: see `SlotLayer`."""
        end = max(cache.lengths)
        for layer, (keys, values) in zip(cache.layers, self.buffers, strict=True):
            for buffer, states in ((keys, layer.keys), (values, layer.values)):
                buffer.zero_()
                if layer.is_initialized:
                    buffer[:, :, :end] = states[:, :, :end]
            layer.keys, layer.values, layer.is_initialized = keys, values, True

    def hold(self, cache: SlotCache) -> bool:
        """Whether the cache still lies in these buffers: it leaves them when it outgrows them or drops sequences."""
        return all(
            layer.keys is keys and layer.values is values
            for layer, (keys, values) in zip(cache.layers, self.buffers, strict=True)
        )


class KeptGraphs:
    """Slots and graphs of one model of a pair of target and drafter, kept between calls.

    compiled: where to keep layers that are compiled for the graphs; None: the model's own are captured.
    """

    def __init__(self, graphs: CudaGraphs, compiled: CompiledLayers | None = None) -> None:
        self.graphs = graphs
        self.compiled = compiled
        self.idle: list[StaticSlots] = []
        self.problem: str | None = None
        self.is_fused = True  # our attention kernel has not failed with this model
        self.decoder_failure: str | None = None  # of the fused decoder with this model
        self._stated: set[str] = set()
        self._lock = threading.RLock()  # a garbage collection may give slots back at any time

    def take(self, num_rows: int, num_slots: int, fingerprint: tuple[object, ...]) -> StaticSlots | None:
        """Slots that no other generation uses, if any fit. Those of a model that has changed are released."""
        with self._lock:
            self.idle[:] = [slots for slots in self.idle if slots.fingerprint == fingerprint]
            for slots in self.idle:
                if slots.num_rows == num_rows and slots.num_slots >= num_slots:
                    self.idle.remove(slots)
                    return slots
            # Longer texts come again: keep no slots that are too short for them.
            self.idle[:] = [slots for slots in self.idle if slots.num_rows != num_rows]
        return None

    def give_back(self, slots: StaticSlots) -> None:
        """Takes back slots whose generation has ended."""
        with self._lock:
            if self.problem is None:
                self.idle.append(slots)

    def give_up(self, reason: str) -> None:
        """Uses no graphs for this model from now on."""
        with self._lock:
            self.problem = reason
            self.idle.clear()
        self.warn(reason)

    def warn(self, reason: str) -> None:
        """Logs once why a forward is not replayed."""
        if self._is_new(reason):
            logger.warning("Running without CUDA graphs: %s.", reason)

    def explain(self, reason: str) -> None:
        """Says once, to those who log it, why forwards of this kind are never replayed."""
        if self._is_new(reason):
            logger.info("Running without CUDA graphs: %s.", reason)

    def _is_new(self, reason: str) -> bool:
        with self._lock:
            is_new = reason not in self._stated
            self._stated.add(reason)
        return is_new


def num_static_slots(capacity: int) -> int:
    """Slots for a text of `capacity` tokens and a padded window after it."""
    needed = capacity + MAX_WIDTH
    return min(-(-needed // SLOT_STEP) * SLOT_STEP, MAX_SLOTS)
