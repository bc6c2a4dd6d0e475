"""One forward of a causal-LM body over a window of tokens, the same call for target and drafter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from transformers import Cache

from ..compatibility import CACHE
from .causal_lm import CausalLM, attention_name, is_watched, takes_logits_to_keep
from .cpu.grouped_attention import in_place_of_sdpa, is_usable
from .positions import position_table, rope_change
from .ragged import indices, is_even
from .slot_cache import LayerWindow, SlotCache, layer_windows
from .window import MAX_NODES, Sight, Window

LayerOutput = Literal["hidden_states", "attentions"]

# Function applied to the logits (B, r, vocabulary) inside the forward, so that a CUDA graph includes it; it returns
# tensors (B, r, ...). Heads that compute the same must be equal, since a graph is captured for one.
Head = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]

# One for all layers, or one per layer type; None where a token sees all there is.
Mask = torch.Tensor | Mapping[str, torch.Tensor | None]


def raw_logits(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The head that leaves everything to the caller."""
    return (logits,)


def best_tokens(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The head of greedy verification: the most likely tokens (B, r); of equal logits the first."""
    return (logits.max(dim=-1).indices,)  # argmax is five times slower for bfloat16 on a CPU; ties break alike


class TopLogits(NamedTuple):
    """The most likely tokens at m positions, the most likely first."""

    values: torch.Tensor  # (B, m, n), their logits
    token_ids: torch.Tensor  # (B, m, n)

    def along(self, paths: Sequence[Sequence[int]]) -> TopLogits:
        """Those of the positions that follow each sequence's last token and the nodes of its path through a tree; the
        rest is padding."""
        longest = max(map(len, paths)) + 1
        rows = [[0, *(node + 1 for node in path)] for path in paths]
        places = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.values.device)
        sequence = torch.arange(len(rows), device=places.device)[:, None]
        return TopLogits(self.values[sequence, places], self.token_ids[sequence, places])


@dataclass(frozen=True)
class WithTopLogits:
    """A head that also returns `TopLogits` of the `count` most likely tokens, after its own results."""

    head: Head
    count: int

    def __call__(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        top = logits.topk(min(self.count, logits.shape[-1]), dim=-1)
        return (*self.head(logits), top.values, top.indices)


class Forward(NamedTuple):
    """The output of one forward."""

    outputs: tuple[torch.Tensor, ...]  # the head's results for the tokens read, (B, n, ...) each
    hidden_states: torch.Tensor | None = None  # of the runner's `hidden_layers`, side by side, (B, q, width of all)
    recorded: Mapping[LayerOutput, tuple[torch.Tensor, ...]] = {}  # the model's own, for the whole window

    def gather(self, starts: Sequence[int], ends: Sequence[int], places: Sequence[Sequence[int]]) -> Forward:
        """The same after `SlotCache.gather`, for a window whose tokens end in the slots `ends[b]`."""
        if self.hidden_states is None and not self.recorded:
            return self

        def moved(values: torch.Tensor, dim: int = -2) -> torch.Tensor:
            firsts = [0 if dim == -1 else end - values.shape[dim] for end in ends]  # the last dimension's are slots
            rows = zip(values, starts, firsts, places, strict=True)
            return torch.stack([_gathered(row, dim, start - first, of_row) for row, start, first, of_row in rows])

        recorded = {name: tuple(map(moved, layers)) for name, layers in self.recorded.items()}
        if "attentions" in recorded:
            recorded["attentions"] = tuple(moved(layer, -1) for layer in recorded["attentions"])
        states = None if self.hidden_states is None else moved(self.hidden_states)
        return self._replace(hidden_states=states, recorded=recorded)


def _gathered(values: torch.Tensor, dim: int, start: int, places: Sequence[int]) -> torch.Tensor:
    """The values with those at `start` + `places` moved to `start`, `start` + 1 and so on, in one dimension."""
    order = list(range(values.shape[dim]))
    order[start : start + len(places)] = [start + place for place in places]
    return values.index_select(dim, torch.tensor(order, device=values.device))


class EagerRunner:
    """Runs the model as it is, writing K/V into slots.

    A mask is one rule: a token sees the slots before its limit. Without limits the window is causal. Where then all
    sequences have the same length, transformers builds the mask: so a target alone works with any attention
    implementation.

    hidden_layers: indices into the model's `hidden_states` that a forward returns, of all tokens of the window.
    recorded: `hidden_states`, `attentions` or both, which a forward returns as the model outputs them.
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
        self.position_table = position_table(config)
        self.rope_change = rope_change(config)
        self.is_watched = is_watched(model)
        self.leaves_out_logits = takes_logits_to_keep(model)
        self.hidden_layers = hidden_layers
        self.recorded = recorded

    @property
    def description(self) -> str:
        """How its forwards have run."""
        return "eager"

    def new_cache(self, capacity: int, num_rows: int = 1) -> SlotCache:
        """Empty slots for up to `capacity` positions of each of `num_rows` sequences."""
        bound = self.position_table
        if self.rope_change is not None and capacity <= self.rope_change.length:
            bound = self.rope_change.length  # padding beyond it would change the embeddings of all
        return SlotCache(len(self.windows), capacity, num_rows, bound)

    def run(self, window: Window, cache: SlotCache, head: Head = raw_logits) -> Forward:
        """Feeds the window to the model; afterwards the slots hold all of it."""
        cache.rollback(window.starts)
        num_rows, width = window.input_ids.shape
        sight, position_ids = window.sight, window.positions
        if position_ids is None:
            position_ids = indices(cache.lengths, width, window.input_ids.device).expand(num_rows, -1)
        end, bound = cache.cursor.end + width, cache.position_bound
        # The second is faster than the model does it.
        if sight is None and (not is_even(cache.lengths) or (self.takes_bool_masks and 1 < width < end)):
            sight = Sight(position_ids + 1)
        mask: Mask | None = None
        if sight is not None:
            mask = self._mask(position_ids, sight, end)
        elif width == 1 and self.layer_types is not None and self._sees_all(end):
            mask = dict.fromkeys(self.layer_types)  # spares the model the check
        if bound is not None and num_rows > 1 and bound < end:  # one sequence has no padding
            position_ids = position_ids.clamp(max=bound - 1)
        # A tenth less time than no_grad where a forward is mostly overhead. K/V that graphs write must be ordinary
        # tensors, and so must be what hooks keep.
        is_private = window.input_ids.device.type == "cpu" and not self.is_watched
        mode = torch.inference_mode() if is_private else torch.no_grad()
        is_grouped = self.is_grouped and (sight is not None or width == 1)
        attention = in_place_of_sdpa(self.model) if is_grouped else nullcontext()
        with mode, attention:
            logits, hidden_states, recorded = self._forward(
                window.input_ids, position_ids, mask, cache, window.read, window.states, window.added
            )
            outputs = window.own(head(logits))
        cache.advance(width)
        return Forward(outputs, hidden_states, recorded)

    def _sees_all(self, num_slots: int) -> bool:
        """Whether the last of `num_slots` slots sees all of them in every layer."""
        return all(window is None or num_slots <= window.size for window in self.windows)

    def _forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        mask: Mask | None,
        cache: Cache,
        read: int | torch.Tensor,
        states: torch.Tensor | None,
        added: torch.Tensor | None,
        model: CausalLM | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict[LayerOutput, tuple[torch.Tensor, ...]]]:
        """The model's logits, and `hidden_states` and `recorded` of `Forward`. model: one that computes the same."""
        wanted = {*self.recorded, "hidden_states"} if self.hidden_layers else self.recorded
        outputs = (self.model if model is None else model)(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=mask,
            **{CACHE: cache},
            use_cache=True,
            return_dict=True,
            **({"logits_to_keep": read} if self.leaves_out_logits else {}),
            **({} if states is None else {"states": states}),
            **({} if added is None else {"added": added}),
            **{f"output_{name}": True for name in wanted},
        )
        hidden_states = None
        if self.hidden_layers:
            hidden_states = torch.cat([outputs.hidden_states[layer] for layer in self.hidden_layers], dim=-1)
        logits = _of_read(outputs.logits, read)
        return logits, hidden_states, {name: outputs[name] for name in self.recorded}

    def _mask(self, positions: torch.Tensor, sight: Sight, end: int) -> Mask:
        """The 4-D mask; one per layer type where the model's layers differ in type."""
        if self.layer_types is None:
            return self._window_mask(positions, sight, end, self.windows[0])
        by_type = dict(zip(self.layer_types, self.windows, strict=False))
        return {name: self._window_mask(positions, sight, end, window) for name, window in by_type.items()}

    def _window_mask(
        self, positions: torch.Tensor, sight: Sight, end: int, window: LayerWindow | None
    ) -> torch.Tensor:
        slots = torch.arange(end, device=positions.device)
        visible = slots < sight.limit.expand_as(positions)[..., None]
        if window is not None:
            visible &= slots >= window.first(positions)[..., None]
        if sight.ancestors is not None:
            visible |= within(sight, positions, window).of_tree(slots)
        return self._of_visible(visible)

    def mask_of(self, visible: torch.Tensor, positions: torch.Tensor) -> Mask:
        """The mask of tokens that see each other as `visible` (B, q, q) says, cut by their layers' windows, which
        count positions (B, q). For forwards without slots."""

        def inside(window: LayerWindow | None) -> torch.Tensor:
            if window is None:
                return self._of_visible(visible)
            return self._of_visible(visible & (positions[:, None] >= window.first(positions)[..., None]))

        if self.layer_types is None:
            return inside(self.windows[0])
        by_type = dict(zip(self.layer_types, self.windows, strict=False))
        return {name: inside(window) for name, window in by_type.items()}

    def _of_visible(self, visible: torch.Tensor) -> torch.Tensor:
        visible = visible[:, None]
        if not self.is_eager_attention:
            return visible
        dtype = self.model.dtype
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(
            ~visible, torch.finfo(dtype).min
        )


def within(sight: Sight, positions: torch.Tensor, window: LayerWindow | None) -> Sight:
    """The sight of tokens at these positions (B, q) in a layer of this window: what they see of their tree is cut by
    positions, as all else, and not by slots."""
    if window is None or sight.ancestors is None:
        return sight
    bits = torch.arange(MAX_NODES, device=positions.device)
    node = (sight.limit - positions[:, :1])[..., None] + bits  # the column of each bit's token
    node = node.clamp(0, positions.shape[1] - 1)
    position = positions[:, None].expand(-1, positions.shape[1], -1).gather(2, node)
    is_near = position >= window.first(positions)[..., None]
    return Sight(sight.limit, sight.ancestors & (is_near.long() << bits).sum(dim=-1))


def _of_read(logits: torch.Tensor, read: int | torch.Tensor) -> torch.Tensor:
    """The logits of the tokens read, where a model may have returned those of the whole window."""
    if logits.shape[1] == (read if isinstance(read, int) else len(read)):
        return logits
    return logits[:, -read:] if isinstance(read, int) else logits[:, read]
