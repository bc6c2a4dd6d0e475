"""Forwards replayed as CUDA graphs: `EagerRunner`'s call, without a thousand launches from Python each time.

A graph repeats the same kernels on the same addresses. So K/V stay in `StaticSlots`, inputs are copied to fixed
places, and shapes are rounded up to few sizes (`Shape`). Tokens beyond the given ones are padding: their K/V land
after those of the window, where no limit reaches and the next pass overwrites them.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from contextlib import nullcontext

import torch
from transformers.cache_utils import Cache

from ..causal_lm import CausalLM
from ..positions import counted_from
from ..runner import EagerRunner, Forward, Head, raw_logits, within
from ..slot_cache import LayerWindow, SlotCache
from ..window import Sight, Window
from . import fused_decoder, slot_attention
from .capture import Outputs
from .compiled_layers import CompiledLayers
from .eligibility import fingerprint
from .fused_decoder import FusedDecoder
from .static_slots import (
    MAX_WIDTH,
    CapturedForward,
    Given,
    KeptGraphs,
    Shape,
    ShownLayer,
    StaticSlots,
    num_static_slots,
)

logger = logging.getLogger(__name__)


class CudaGraphRunner(EagerRunner):
    """Replays a captured forward where one fits, and else does what `EagerRunner` does.

    Eager are: the prefill of an empty cache, windows of more than MAX_WIDTH tokens, texts that outgrow MAX_SLOTS, a
    batch that has lost sequences, autocast, and everything after a failed capture (logged once). Each generation has
    its own slots and graphs; at its end they go back to `kept`, and serve the next one without a new capture.
    """

    def __init__(self, model: CausalLM, hidden_layers: tuple[int, ...], kept: KeptGraphs) -> None:
        super().__init__(model, hidden_layers)
        self.kept = kept
        self.replays = 0
        self.counted_from = counted_from(model.config.get_text_config(decoder=True))
        self._is_fused = False
        self._replayed = ""
        self._slots: weakref.WeakKeyDictionary[SlotCache, StaticSlots] = weakref.WeakKeyDictionary()

    @property
    def description(self) -> str:
        """How its forwards have run: those of the last kind of shape that was replayed."""
        name = "cuda_graphs" if self.kept.compiled is None else "compiled_graphs"
        return f"{name}: {self._replayed}" if self._replayed else super().description

    def new_cache(self, capacity: int, num_rows: int = 1) -> SlotCache:
        cache = super().new_cache(capacity, num_rows)
        slots = self.kept.take(num_rows, num_static_slots(capacity), fingerprint(self.model))
        if slots is not None:
            self._lend(slots, cache)
        return cache

    def run(self, window: Window, cache: SlotCache, head: Head = raw_logits) -> Forward:
        """See `EagerRunner.run`."""
        cache.rollback(window.starts)
        width = window.input_ids.shape[1]
        captured = None
        if min(window.starts) and width <= MAX_WIDTH and not self.kept.problem:
            captured = self._captured(window, cache, head)
        if captured is None:
            return super().run(window, cache, head)
        outputs = captured.replay()
        self.replays += 1
        self._replayed = captured.content
        cache.is_checked = True  # the capture was: see `_run`
        cache.advance(width)
        hidden_states = None
        if self.hidden_layers:
            hidden_states, outputs = outputs[0][:, :width], outputs[1:]
        return Forward(window.own(tuple(output[:, : window.num_read] for output in outputs)), hidden_states)

    def _captured(self, window: Window, cache: SlotCache, head: Head) -> CapturedForward | None:
        """The captured forward for this window, its inputs filled; None if there is none."""
        if torch.is_autocast_enabled(window.input_ids.device.type):
            return None
        try:
            slots = self._static(cache)
            shape = Shape.around(window, slots.num_slots, self.hidden_layers, head)
            if not slots.hold(cache) or max(window.starts) + shape.width > slots.num_slots:
                self.kept.warn(f"a batch has lost rows, or a text has outgrown its {slots.num_slots} slots")
                return None
            if self.counted_from is not None and shape.num_slots >= self.counted_from:
                self.kept.warn(f"from {self.counted_from} slots on the forward depends on how many are filled")
                return None
            if self._is_at_an_edge(max(window.starts), shape.width):
                return None
            captured = slots.forwards.get(shape)
            if captured is not None:
                captured.fill(window)
                return captured
            # Tensors made in inference mode could not be written outside of it.
            with torch.inference_mode(False), torch.no_grad():
                captured = CapturedForward(shape, window, self.model.device)
                captured.fill(window)
                self._capture(captured, slots)
            slots.forwards[shape] = captured
        except Exception as error:  # out of memory, or an operation that cannot be captured: eager may work
            self.kept.give_up(f"{type(error).__name__}: {error}")
            return None
        return captured

    def _is_at_an_edge(self, start: int, width: int) -> bool:
        """Whether padding would change the rotary embeddings, or tokens lie beyond the model's table of positions."""
        if self.position_table is not None and start >= self.position_table:
            return True
        return self.rope_change is not None and start < self.rope_change.length < start + width

    def _capture(self, forward: CapturedForward, slots: StaticSlots) -> None:
        """Captures the fused decoder where it can stand in for the model's layers, else compiled layers if they are
        asked for, else the model with our attention kernel where that can, else the model as it is."""

        def capture(is_fused: bool, decoder: FusedDecoder | None = None, model: CausalLM | None = None) -> None:
            forward.capture(
                lambda: self._run(forward, slots, is_fused, decoder, model),
                lambda: self._run(forward, slots, False),
                self.kept.graphs,
                slots.arena,
            )

        decoder = slots.decoder
        if forward.shape.is_limited is Given.TREE:
            decoder = "it takes a token's position from its slot"
        if isinstance(decoder, FusedDecoder) and self.kept.decoder_failure is None:
            try:
                forward.content = "fused decoder"
                return capture(True, decoder)
            except Exception as error:
                self.kept.decoder_failure = f"{type(error).__name__}: {error}"
                logger.warning("Capturing without the fused decoder: %s.", self.kept.decoder_failure)
        reason = decoder if isinstance(decoder, str) else self.kept.decoder_failure
        takes_kernel = self.kept.is_fused and slot_attention.is_usable(self.model)
        compiled = self.kept.compiled
        if compiled is not None and compiled.failure is None:
            try:
                forward.content = "compiled layers"
                return self._capture_compiled(capture, forward, slots, compiled, takes_kernel)
            except Exception as error:
                compiled.failure = f"{type(error).__name__}: {error}".splitlines()[0]
                logger.warning("Capturing without compiled layers: %s.", compiled.failure)
        if compiled is not None:
            reason = f"{reason}; not compiled: {compiled.failure}"
        forward.content = f"the model's own layers ({reason})"
        if takes_kernel:
            try:
                return capture(True)
            except Exception as error:
                self.kept.is_fused = False
                logger.warning("Capturing without the attention kernel: %s: %s.", type(error).__name__, error)
        return capture(False)

    def _capture_compiled(
        self,
        capture: Callable[..., None],
        forward: CapturedForward,
        slots: StaticSlots,
        compiled: CompiledLayers,
        takes_kernel: bool,
    ) -> None:
        """Captures compiled layers, with our attention kernel where they take it."""
        model = compiled.model(self.model)
        if takes_kernel and compiled.takes_kernel:
            try:
                self._run(forward, slots, True, model=model)  # compiles: a capture's rehearsal may not
                return capture(True, model=model)
            except Exception as error:
                compiled.takes_kernel = False
                logger.info("Compiling without the attention kernel: %s: %s.", type(error).__name__, error)
                model = compiled.model(self.model)
        self._run(forward, slots, False, model=model)
        return capture(False, model=model)

    def _run(
        self,
        forward: CapturedForward,
        slots: StaticSlots,
        is_fused: bool,
        decoder: FusedDecoder | None = None,
        model: CausalLM | None = None,
    ) -> Outputs:
        """The forward to capture: on its fixed inputs, by the decoder or by the model (`model` in place of ours), with
        our attention kernel or the model's own. Returns logits, hidden states if any, and the head's results.

        Nothing here may depend on a number that changes on the host.
        """
        shape = forward.shape
        if decoder is not None:
            logits, hidden_states = decoder.forward(forward, slots.buffers)
            return (logits, *(() if hidden_states is None else (hidden_states,)), *shape.head(logits))
        places = forward.places()
        rows = torch.arange(len(places), device=places.device)[:, None]
        layers = [ShownLayer(*states, rows, places, shape.num_slots) for states in slots.buffers]
        shown = Cache(layers=layers)
        is_tree = shape.is_limited is Given.TREE
        positions = forward.positions if is_tree else places
        sight = Sight(forward.limit if shape.is_limited else places + 1, forward.ancestors if is_tree else None)
        position_ids = positions if self.position_table is None else positions.clamp(max=self.position_table - 1)
        self._is_fused = is_fused
        mask = self._mask(positions, sight, shape.num_slots)
        self._is_fused = False
        with slot_attention.slot_attention(self.model) if is_fused else nullcontext():
            logits, hidden_states, _ = self._forward(
                forward.input_ids, position_ids, mask, shown, forward.read, forward.states, forward.added, model
            )
        if not all(layer.is_written for layer in layers):
            raise RuntimeError("the forward stores nothing in the cache")
        return (logits, *(() if hidden_states is None else (hidden_states,)), *shape.head(logits))

    def _window_mask(
        self, positions: torch.Tensor, sight: Sight, end: int, window: LayerWindow | None
    ) -> torch.Tensor:
        if self._is_fused:
            return slot_attention.as_mask(positions, within(sight, positions, window), window)
        return super()._window_mask(positions, sight, end, window)

    def _static(self, cache: SlotCache) -> StaticSlots:
        """The fixed slots of this cache; if it has none yet, they are made for its capacity."""
        slots = self._slots.get(cache)
        if slots is None:
            with torch.inference_mode(False), torch.no_grad():
                arena = self.kept.graphs.new_arena(cache.layers[0].keys.device)
                num_slots = num_static_slots(cache.layers[0].capacity)
                decoder = fused_decoder.build(self.model, num_slots)  # moves weights: before the fingerprint
                slots = StaticSlots(cache, num_slots, arena, fingerprint(self.model), decoder)
            self._lend(slots, cache)
        return slots

    def _lend(self, slots: StaticSlots, cache: SlotCache) -> None:
        slots.lend(cache)
        self._slots[cache] = slots
        weakref.finalize(cache, self.kept.give_back, slots).atexit = False
