"""One forward of a causal-LM body over a window of tokens, the same call for target and drafter."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Literal, Protocol

import torch
from transformers import Cache, PreTrainedConfig

from ..compatibility import CACHE
from .cpu.grouped_attention import attention_name, in_place_of_sdpa, is_usable
from .ragged import Rows, indices, is_even
from .slot_cache import SlotCache, layer_windows

LayerOutput = Literal["hidden_states", "attentions"]

# What is made of the logits (B, r, vocabulary) within the forward, and so within its graph: tensors (B, r, ...).
# Heads that compute the same must be equal, since a graph is captured for one.
Head = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


# One for all layers, or one per layer type; None where a row sees all there is.
Mask = torch.Tensor | Mapping[str, torch.Tensor | None]


def raw_logits(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The head that leaves everything to the caller."""
    return (logits,)


class CausalLM(Protocol):
    """The part of a transformers causal LM that a forward needs."""

    config: PreTrainedConfig

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def modules(self) -> Iterator[torch.nn.Module]: ...

    def __call__(self, *, input_ids: torch.Tensor, logits_to_keep: int | torch.Tensor, **inputs: Any) -> Any: ...


class EagerRunner:
    """Runs the model as it is, writing K/V into slots.

    A mask is one rule: row i of the window sees the slots < limit[i]. Without limits the window is causal, and where
    all rows of the batch are equally long transformers builds the mask, so that any attention implementation works
    for a target alone.

    hidden_layers: indices into the model's `hidden_states`; `self.hidden_states` then holds them, side by side, for
        every row of the last window (B, q, width of all), whichever rows' logits were asked for.
    recorded: `hidden_states`, `attentions` or both; `self.outputs` then holds the model's, of the whole last window.
    """

    def __init__(
        self, model: CausalLM, hidden_layers: tuple[int, ...] = (), recorded: tuple[LayerOutput, ...] = ()
    ) -> None:
        config = model.config.get_text_config(decoder=True)
        self.model = model
        self.windows = layer_windows(config)
        self.layer_types = getattr(config, "layer_types", None)
        self.is_eager_attention = attention_name(model) == "eager"
        self.is_grouped = is_usable(model)
        self.takes_bool_masks = self.is_grouped or (self.layer_types is not None and attention_name(model) == "sdpa")
        self.num_positions = getattr(config, "max_position_embeddings", None)
        self.hidden_layers = hidden_layers
        self.hidden_states: torch.Tensor | None = None
        self.recorded = recorded
        self.outputs: dict[LayerOutput, tuple[torch.Tensor, ...]] = {}

    def new_cache(self, capacity: int, num_rows: int = 1) -> SlotCache:
        """Empty slots for up to `capacity` positions of each row."""
        return SlotCache(len(self.windows), capacity, num_rows)

    def __call__(
        self,
        input_ids: torch.Tensor,  # (B, q)
        cache: SlotCache,
        rows: int | torch.Tensor,  # the last `rows` rows of the window, or row indices (r,)
        limit: torch.Tensor | None = None,  # (q,) or (B, q)
    ) -> torch.Tensor:
        """As `run`, with the logits (B, r, vocabulary) as they are."""
        (logits,) = self.run(input_ids, cache, rows, limit, raw_logits)
        return logits

    def run(
        self,
        input_ids: torch.Tensor,  # (B, q)
        cache: SlotCache,
        rows: int | torch.Tensor,
        limit: torch.Tensor | None,
        head: Head,
    ) -> tuple[torch.Tensor, ...]:
        """Feeds tokens behind the cached ones of each row and returns what the head makes of the logits of the rows
        asked for; afterwards the slots hold all of the window."""
        num_rows, width = input_ids.shape
        position_ids = indices(cache.lengths, width, input_ids.device).expand(num_rows, -1)
        if not is_even(cache.lengths):
            limit = position_ids + 1 if limit is None else limit
            if self.num_positions is not None:  # behind the end of a shorter row the window may reach beyond them
                position_ids = position_ids.clamp(max=self.num_positions - 1)
        end = cache.cursor.end + width
        if limit is None and self.takes_bool_masks and 1 < width < end:  # sooner than the model does
            limit = position_ids + 1
        mask: Mask | None = None
        if limit is not None:
            mask = self._mask(position_ids, limit, end)
        elif (
            width == 1
            and self.layer_types is not None
            and all(window is None or end <= window for window in self.windows)
        ):
            mask = dict.fromkeys(self.layer_types)  # one row that sees all: the model need not find that out
        # A tenth less time than no_grad where a forward is mostly overhead; K/V that graphs write must be ordinary.
        mode = torch.inference_mode() if input_ids.device.type == "cpu" else nullcontext()
        attention = (
            in_place_of_sdpa(self.model) if self.is_grouped and (limit is not None or width == 1) else nullcontext()
        )
        with mode, attention:
            logits, self.hidden_states = self._forward(input_ids, position_ids, mask, cache, rows)
            outputs = head(logits)
        cache.advance(width)
        return outputs

    def _forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        mask: Mask | None,
        cache: Cache,
        rows: int | torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The model's logits, and the hidden states if any are asked for."""
        wanted = {*self.recorded, "hidden_states"} if self.hidden_layers else self.recorded
        outputs = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=mask,
            **{CACHE: cache},
            use_cache=True,
            logits_to_keep=rows,
            return_dict=True,
            **{f"output_{name}": True for name in wanted},
        )
        self.outputs = {name: outputs[name] for name in self.recorded}
        if not self.hidden_layers:
            return outputs.logits, None
        return outputs.logits, torch.cat([outputs.hidden_states[layer] for layer in self.hidden_layers], dim=-1)

    def _mask(self, positions: torch.Tensor, limit: torch.Tensor, end: int) -> Mask:
        """The 4-D mask; one per layer type where the model's layers differ in type."""
        if self.layer_types is None:
            return self._window_mask(positions, limit, end, self.windows[0])
        by_type = dict(zip(self.layer_types, self.windows, strict=False))
        return {name: self._window_mask(positions, limit, end, window) for name, window in by_type.items()}

    def _window_mask(self, positions: torch.Tensor, limit: torch.Tensor, end: int, window: int | None) -> torch.Tensor:
        slots = torch.arange(end, device=positions.device)
        visible = slots < limit.expand_as(positions)[..., None]
        if window is not None:
            visible &= slots > positions[..., None] - window
        visible = visible[:, None]
        if not self.is_eager_attention:
            return visible
        dtype = self.model.dtype
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(
            ~visible, torch.finfo(dtype).min
        )


Limit = Callable[[torch.Tensor, int | torch.Tensor], torch.Tensor]


def feed(
    runner: EagerRunner,
    cache: SlotCache,
    known: Rows,
    tail: torch.Tensor,  # (B, c)
    num_read: int,
    shift: int = 1,
    limit: Limit | None = None,
    head: Head = raw_logits,
) -> tuple[torch.Tensor, ...]:
    """One forward over each row's known tokens that are not in the slots, and its tail behind them.

    Returns what the head makes of `num_read` rows' logits, (B, num_read, ...) each, from the row of the last known
    token on with shift 1, from the first of the tail with shift 0. Rows that have less to read than others begin
    earlier, with tokens that are in the slots already, so that all tails begin in the same column of the window; only
    where a row is too short for that (prompts of different length) the columns differ.

    limit: makes the limits (B, q) or (q,) out of the window's positions and the number of known tokens, which is a
        number where all rows know as many, else a tensor (B, 1).
    """
    unread = max(length - cached for length, cached in zip(known.lengths, cache.lengths, strict=True))
    width = unread + tail.shape[1]
    if unread <= min(known.lengths):
        cache.rollback([length - unread for length in known.lengths])
        window = torch.cat([known.window(cache.lengths, unread), tail], dim=1)
    else:
        window = known.append(tail).window(cache.lengths, width)
    starts = cache.lengths
    first = [length - shift - start for length, start in zip(known.lengths, starts, strict=True)]
    limits = None
    if limit is not None:
        clean_end = known.lengths[0] if is_even(known.lengths) else indices(known.lengths, 1, window.device)
        limits = limit(indices(starts, width, window.device), clean_end)
    if is_even(first):
        is_end = first[0] + num_read == width
        rows = num_read if is_end else torch.arange(first[0], first[0] + num_read, device=window.device)
        return runner.run(window, cache, rows, limits, head)
    columns = sorted({start + offset for start in first for offset in range(num_read)})
    outputs = runner.run(window, cache, torch.tensor(columns, device=window.device), limits, head)
    place = [[columns.index(start + offset) for offset in range(num_read)] for start in first]
    index = (torch.arange(len(first), device=window.device)[:, None], torch.tensor(place, device=window.device))
    return tuple(output[index] for output in outputs)
