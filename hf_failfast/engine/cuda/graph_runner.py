"""Forwards replayed as CUDA graphs: `EagerRunner`'s call, without a thousand launches from Python each time.

A graph repeats the same kernels on the same addresses. So K/V stay in `StaticSlots`, inputs are copied to fixed
places, and shapes are rounded up to few sizes (`Shape`). What is beyond the given tokens is padding: its K/V land
behind those of the window, where no limit reaches and the next pass overwrites them.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from ..cpu.grouped_attention import attention_name
from ..ragged import is_even
from ..runner import CausalLM, EagerRunner, Head
from ..slot_cache import SlotCache
from . import slot_attention
from .capture import Arena, CudaGraphs, Outputs

logger = logging.getLogger(__name__)

# Wider windows are prefills: few, of any width, and not bound by launches.
MAX_WIDTH = 128
# Most slots that a sequence gets at fixed addresses; a longer text goes on without graphs.
MAX_SLOTS = 16384
_SLOT_STEP = 256


class Shape(NamedTuple):
    """What a forward is captured for."""

    width: int  # tokens per sequence
    num_slots: int  # in sight
    num_read: int  # rows of the window whose logits are computed
    is_limited: bool  # the limits are given; otherwise the window is causal
    hidden_layers: tuple[int, ...]
    head: Head

    @classmethod
    def around(
        cls,
        width: int,
        num_read: int,
        length: int,
        max_slots: int,
        is_limited: bool,
        hidden_layers: tuple[int, ...],
        head: Head,
    ) -> Shape:
        """The smallest shape that holds a window behind `length` slots. Up to 16 rows cost a GPU what one costs."""
        width = _round_up(width)
        num_slots = min(max(_power_of_two(length + width), _SLOT_STEP), max_slots)
        return cls(width, num_slots, min(_round_up(num_read), width), is_limited, hidden_layers, head)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _round_up(number: int) -> int:
    return number if number == 1 else max(_power_of_two(number), 16)


class _ShownLayer(CacheLayerMixin):
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

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The slots are there already."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
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
    """One forward with its inputs at fixed addresses; captured by `capture`, then called any number of times."""

    def __init__(self, shape: Shape, num_rows: int, device: torch.device) -> None:
        self.shape = shape
        self.input_ids = torch.zeros(num_rows, shape.width, dtype=torch.long, device=device)
        self.starts = torch.zeros(num_rows, 1, dtype=torch.long, device=device)
        self.limit = torch.ones(num_rows, shape.width, dtype=torch.long, device=device)
        self.read = torch.zeros(shape.num_read, dtype=torch.long, device=device)

    def fill(
        self, input_ids: torch.Tensor, lengths: Sequence[int], rows: int | torch.Tensor, limit: torch.Tensor | None
    ) -> None:
        """Copies a call's arguments (see `EagerRunner.run`) to where the graph reads them.

        What is left of an earlier call becomes padding: known ids, rows of the window, limits of at least one slot.
        """
        width = input_ids.shape[1]
        self.input_ids[:, :width] = input_ids
        if is_even(lengths):
            self.starts.fill_(lengths[0])  # the number travels with the launch: no copy from the host
        else:
            self.starts.copy_(torch.tensor(lengths)[:, None])
        if isinstance(rows, int):
            torch.arange(width - rows, width, out=self.read[:rows])
        else:
            self.read[: len(rows)] = rows
        if limit is not None:
            self.limit[:, :width] = limit

    def capture(
        self, forward: Callable[[], Outputs], plain: Callable[[], Outputs], graphs: CudaGraphs, arena: Arena
    ) -> None:
        """Captures `forward`, which must read these inputs, and returns the logits, the hidden states if any, and what
        the head makes of the logits. Raises RuntimeError if logits or hidden states differ from those of `plain`."""
        expected = plain()
        self._replay, outputs = graphs.capture(forward, arena)
        self._replay()
        self._outputs = outputs[1:]  # the head has read the logits
        compared = 1 + bool(self.shape.hidden_layers)
        if not all(map(_is_close, outputs[:compared], expected)):
            raise RuntimeError("the captured forward computes something else than the plain one")

    def replay(self) -> Outputs:
        """The outputs for the inputs as they were filled. Copies: the next replay of any graph overwrites them."""
        self._replay()
        return tuple(output.clone() for output in self._outputs)


def _is_close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal up to what rounding makes of many layers, at the scale of the whole tensor: a wrong slot or position is
    far from that."""
    bound = expected.float().nan_to_num().abs().max() * (1e-3 if expected.dtype == torch.float32 else 0.1)
    return bool(((actual.float() - expected.float()).nan_to_num().abs() <= bound).all())


def _widened(states: torch.Tensor, num_slots: int) -> torch.Tensor:
    return states.new_zeros(*states.shape[:2], num_slots, states.shape[3])


class StaticSlots:
    """K/V at fixed addresses for one cache at a time, and the forwards captured on them."""

    def __init__(self, cache: SlotCache, num_slots: int, arena: Arena, fingerprint: tuple[object, ...]) -> None:
        self.buffers = [(_widened(layer.keys, num_slots), _widened(layer.values, num_slots)) for layer in cache.layers]
        self.num_rows = len(cache.lengths)
        self.num_slots = num_slots
        self.arena = arena
        self.fingerprint = fingerprint  # of the model as it was captured
        self.forwards: dict[Shape, CapturedForward] = {}

    def lend(self, cache: SlotCache) -> None:
        """Puts the buffers under a cache, with what the cache holds. The rest is zero: see `SlotLayer`."""
        end = max(cache.lengths)
        for layer, (keys, values) in zip(cache.layers, self.buffers, strict=True):
            for buffer, states in ((keys, layer.keys), (values, layer.values)):
                buffer.zero_()
                if layer.is_initialized:
                    buffer[:, :, :end] = states[:, :, :end]
            layer.keys, layer.values, layer.is_initialized = keys, values, True

    def hold(self, cache: SlotCache) -> bool:
        """Whether the cache still lies in these buffers: it leaves them when it outgrows them or drops rows."""
        return all(
            layer.keys is keys and layer.values is values
            for layer, (keys, values) in zip(cache.layers, self.buffers, strict=True)
        )


class KeptGraphs:
    """What was captured of one model for one pair of target and drafter, between calls."""

    def __init__(self, graphs: CudaGraphs) -> None:
        self.graphs = graphs
        self.idle: list[StaticSlots] = []
        self.problem: str | None = None
        self.is_fused = True  # our attention kernel has not failed with this model
        self._warned: set[str] = set()
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
        """The generation that used the slots has ended."""
        with self._lock:
            if self.problem is None:
                self.idle.append(slots)

    def give_up(self, reason: str) -> None:
        """No more graphs for this pair."""
        with self._lock:
            self.problem = reason
            self.idle.clear()
        self.warn(reason)

    def warn(self, reason: str) -> None:
        """Says once why a forward is not replayed."""
        with self._lock:
            is_new = reason not in self._warned
            self._warned.add(reason)
        if is_new:
            logger.warning("Running without CUDA graphs: %s.", reason)


class CudaGraphRunner(EagerRunner):
    """Replays a captured forward where one fits, and else does what `EagerRunner` does.

    Eager are: the prefill of an empty cache, windows of more than MAX_WIDTH tokens, texts that outgrow MAX_SLOTS, a
    batch that has lost rows, autocast, and everything after a capture has failed (logged once). Each generation has
    slots and graphs to itself; at its end they go back to `kept`, and serve the next one without a new capture.
    """

    def __init__(self, model: CausalLM, hidden_layers: tuple[int, ...], kept: KeptGraphs) -> None:
        super().__init__(model, hidden_layers)
        self.kept = kept
        self.replays = 0
        self._is_fused = False
        self._slots: weakref.WeakKeyDictionary[SlotCache, StaticSlots] = weakref.WeakKeyDictionary()

    def new_cache(self, capacity: int, num_rows: int = 1) -> SlotCache:
        cache = super().new_cache(capacity, num_rows)
        slots = self.kept.take(num_rows, _static_slots(capacity), fingerprint(self.model))
        if slots is not None:
            self._lend(slots, cache)
        return cache

    def run(
        self,
        input_ids: torch.Tensor,
        cache: SlotCache,
        rows: int | torch.Tensor,
        limit: torch.Tensor | None,
        head: Head,
    ) -> tuple[torch.Tensor, ...]:
        """See `EagerRunner.run`."""
        forward = None
        if min(cache.lengths) and input_ids.shape[1] <= MAX_WIDTH and not self.kept.problem:
            forward = self._captured(input_ids, cache, rows, limit, head)
        if forward is None:
            return super().run(input_ids, cache, rows, limit, head)
        outputs = forward.replay()
        self.replays += 1
        cache.advance(input_ids.shape[1])
        if self.hidden_layers:
            self.hidden_states = outputs[0][:, : input_ids.shape[1]]
            outputs = outputs[1:]
        num_read = rows if isinstance(rows, int) else len(rows)
        return tuple(output[:, :num_read] for output in outputs)

    def _captured(
        self,
        input_ids: torch.Tensor,
        cache: SlotCache,
        rows: int | torch.Tensor,
        limit: torch.Tensor | None,
        head: Head,
    ) -> CapturedForward | None:
        """The captured forward for this call, its inputs filled; None if there is none."""
        if torch.is_autocast_enabled(input_ids.device.type):
            return None
        try:
            slots = self._static(cache)
            num_read = rows if isinstance(rows, int) else len(rows)
            length = max(cache.lengths)
            shape = Shape.around(
                input_ids.shape[1], num_read, length, slots.num_slots, limit is not None, self.hidden_layers, head
            )
            if not slots.hold(cache) or length + shape.width > slots.num_slots:
                self.kept.warn(f"a batch has lost rows, or a text has outgrown its {slots.num_slots} slots")
                return None
            forward = slots.forwards.get(shape)
            if forward is not None:
                forward.fill(input_ids, cache.lengths, rows, limit)
                return forward
            # Tensors made in inference mode could not be written outside of it.
            with torch.inference_mode(False), torch.no_grad():
                forward = CapturedForward(shape, slots.num_rows, self.model.device)
                forward.fill(input_ids, cache.lengths, rows, limit)
                self._capture(forward, slots)
            slots.forwards[shape] = forward
        except Exception as error:  # out of memory, or an operation that cannot be captured: the eager call may do
            self.kept.give_up(f"{type(error).__name__}: {error}")
            return None
        return forward

    def _capture(self, forward: CapturedForward, slots: StaticSlots) -> None:
        """Captures with our attention kernel where it can stand in, else with the model's own attention."""

        def capture(is_fused: bool) -> None:
            forward.capture(
                lambda: self._run(forward, slots, is_fused),
                lambda: self._run(forward, slots, False),
                self.kept.graphs,
                slots.arena,
            )

        if self.kept.is_fused and slot_attention.is_usable(self.model):
            try:
                return capture(True)
            except Exception as error:
                self.kept.is_fused = False
                logger.warning("Capturing without the attention kernel: %s: %s.", type(error).__name__, error)
        return capture(False)

    def _run(self, forward: CapturedForward, slots: StaticSlots, is_fused: bool) -> Outputs:
        """The forward on its fixed inputs, with our own attention kernel or the model's own: what is captured. Returns
        logits, hidden states if any, and what the head makes of the logits.

        Nothing here may depend on a number that changes on the host.
        """
        shape = forward.shape
        positions = forward.starts + torch.arange(shape.width, device=forward.starts.device)
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        shown = Cache(layers=[_ShownLayer(*states, rows, positions, shape.num_slots) for states in slots.buffers])
        limit = forward.limit if shape.is_limited else positions + 1
        position_ids = positions if self.num_positions is None else positions.clamp(max=self.num_positions - 1)
        self._is_fused = is_fused
        mask = self._mask(positions, limit, shape.num_slots)
        self._is_fused = False
        with slot_attention.slot_attention(self.model) if is_fused else nullcontext():
            logits, hidden_states = self._forward(forward.input_ids, position_ids, mask, shown, forward.read)
        return (logits, *(() if hidden_states is None else (hidden_states,)), *shape.head(logits))

    def _window_mask(self, positions: torch.Tensor, limit: torch.Tensor, end: int, window: int | None) -> torch.Tensor:
        if self._is_fused:
            return slot_attention.sight(positions, limit, window)
        return super()._window_mask(positions, limit, end, window)

    def _static(self, cache: SlotCache) -> StaticSlots:
        """The fixed slots of this cache; made, if it has none, of the size it was asked for."""
        slots = self._slots.get(cache)
        if slots is None:
            with torch.inference_mode(False), torch.no_grad():
                arena = self.kept.graphs.new_arena(cache.layers[0].keys.device)
                num_slots = _static_slots(cache.layers[0].capacity)
                slots = StaticSlots(cache, num_slots, arena, fingerprint(self.model))
            self._lend(slots, cache)
        return slots

    def _lend(self, slots: StaticSlots, cache: SlotCache) -> None:
        slots.lend(cache)
        self._slots[cache] = slots
        weakref.finalize(cache, self.kept.give_back, slots).atexit = False


def _static_slots(capacity: int) -> int:
    """Slots for a text of `capacity` tokens and a padded window behind it."""
    needed = capacity + MAX_WIDTH
    return min(-(-needed // _SLOT_STEP) * _SLOT_STEP, MAX_SLOTS)


def fingerprint(model: CausalLM) -> tuple[object, ...]:
    """What a graph has baked in of a model: where its weights are, and the switches that its forward reads."""
    state: list[object] = [attention_name(model)]
    for module in model.modules():
        tensors = (*module._parameters.values(), *module._buffers.values())
        state += [tensor.data_ptr() for tensor in tensors if tensor is not None]
        # LoRA (peft) switches adapters on and off in its layers.
        if hasattr(type(module), "merged"):
            state += [str(getattr(module, name)) for name in ("active_adapters", "disable_adapters", "merged")]
    return tuple(state)


def obstacle(model: CausalLM) -> str | None:
    """Why this model's forwards cannot be captured, where that can be told beforehand."""
    attention = attention_name(model)
    modules = list(model.modules())
    devices = {tensor.device for module in modules for tensor in module.parameters(recurse=False)}
    if attention not in ("sdpa", "eager"):
        return f"the attention implementation {attention!r} takes no mask of its own"
    if len(devices) > 1:
        return f"the model is spread over {sorted(map(str, devices))}"
    if any(module.training for module in modules):
        return "the model is in training mode"
    if any(module._compiled_call_impl is not None or "_orig_mod" in module._modules for module in modules):
        return "the model is compiled"
    if any("_hf_hook" in vars(module) or _has_foreign_hooks(module) for module in modules):
        return "the model has forward hooks, which a replay would skip"
    return None


def _has_foreign_hooks(module: torch.nn.Module) -> bool:
    """transformers' own hooks collect hidden states, and have done so when the graph was captured."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks)
