"""Drafter layers that read the target's hidden states of the context in place of their own.

Layer i is a copy of the target's layer l(i). At every context token it reads the input of the target's layer l(i), so
that before training its keys and values of the context equal the target's own. So the drafter sees the past at the
target's full depth (as DFlash, arXiv 2602.06036, and EAGLE-3, arXiv 2503.01840, do), and is shallow only at the
positions that it drafts. With input fusion the newest states are also part of these positions' input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from ...config import FailFastConfig
from ...engine.runner import EagerRunner
from ...engine.window import Sight, Window
from ..base import DiffusionDrafter, DraftRequest, DraftSession, PerRow
from ..bodies.borrowed import SharedBody
from ..checkpoints.target_fit import check_layers, check_states, check_vocabulary
from ..denoising import DraftTokens, choose_tokens
from ..masked.attention_patterns import CausalCanvas
from ..spec import DrafterSpec
from .block_session import CONDITIONED, BlockSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HiddenStateInjection:
    """Replaces the first positions of the input of each decoder layer. Threads do not see each other's states."""

    def __init__(self, decoder: nn.Module) -> None:
        self._given: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}  # by thread
        layers: Any = decoder.layers
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._inject, index))  # a copy's belongs to the copy

    @contextmanager
    def of(self, states: torch.Tensor | None, added: torch.Tensor | None = None) -> Iterator[None]:
        """In this context layer i reads states[:, :, i] of (B, m, layers, hidden) as its first m positions; `added`
        (B, q - m, hidden) is part of the other positions' input."""
        if states is not None:
            self._given[get_ident()] = states, added
        try:
            yield
        finally:
            self._given.pop(get_ident(), None)

    def _inject(self, index: int, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The pre-hook of layer `index`."""
        found = self._given.get(get_ident())
        if found is None:
            return None
        states, added = found
        hidden = arguments[0]
        given = states[:, :, index].to(hidden.dtype)
        own = hidden[:, given.shape[1] :]
        if index == 0 and added is not None:
            own = own + added.to(own.dtype)
        return (torch.cat([given, own], dim=1), *arguments[1:])


class ConditionedDrafter(DiffusionDrafter):
    """A causal-canvas checkpoint of this project that was trained on the target's hidden states."""

    has_alternatives = True

    def __init__(
        self, body: SharedBody, spec: DrafterSpec, layers: tuple[int, ...], canvas_length: int, config: FailFastConfig
    ) -> None:
        self.body = body
        self.spec = spec
        self.target_layers = layers  # hidden_states[l] is what enters the target's layer l
        self.canvas_length = canvas_length
        self.config = config
        self.injection = HiddenStateInjection(body.decoder)

    def start(self, request: DraftRequest) -> DraftSession:
        self.check_target(request.target)
        self.runners.explain(request.target, CONDITIONED)
        return PerRow.of(request, lambda one: ConditionedSession(self, one))

    def check_target(self, target: PreTrainedModel) -> None:
        config = target.config.get_text_config(decoder=True)
        check_vocabulary(self.body.config.get_text_config(decoder=True).vocab_size, config.vocab_size)
        check_states(config)
        check_layers(self.target_layers, config.num_hidden_layers)
        self.body.check_target(target)

    def modules(self) -> Iterator[nn.Module]:
        return self.body.modules()


class ConditionedSession(BlockSession):
    """Drafts a canvas a pass. The last token and the masks after it pass through the layers as in training; so do the
    tokens drafted so far, where a draft goes on beyond the first canvas.

    recent: the newest states, (1, n, layers, hidden): the last one's, or as many as a window may need again.
    """

    def __init__(self, drafter: ConditionedDrafter, request: DraftRequest) -> None:
        self.model = drafter.body.attach(request.target)
        self.device = self.model.device
        self.target_layers = drafter.target_layers
        self.injection = drafter.injection
        self.fusion = drafter.body.fusion
        self.mask_token_id = drafter.body.mask_token_id
        self.num_alternatives = request.num_alternatives
        self.pattern = CausalCanvas(drafter.spec)
        self.runner = EagerRunner(self.model)
        window, canvas = drafter.window, drafter.canvas_length
        # A window leaves as much room for drafts as it has tokens.
        capacity = min(request.capacity, 2 * window) if window else request.capacity
        positions = getattr(self.model.config, "max_position_embeddings", None) or capacity
        self.longest = min(positions, capacity)
        self.recent = torch.zeros(1, 0, len(self.target_layers), self.model.config.hidden_size, device=self.device)
        super().__init__(
            self.runner.new_cache(capacity + canvas), self.recent, canvas, request.eos_on(self.device), window
        )

    def observe(self, states: Sequence[torch.Tensor]) -> None:
        new = states[0].to(self.device).unflatten(-1, (len(self.target_layers), -1))
        self.features = torch.cat([self.features.to(new.dtype), new], dim=1)
        self.recent = torch.cat([self.recent.to(new.dtype), new], dim=1)[:, -max(self.window, 1) :]

    def restart(self, rows: Sequence[int]) -> None:
        self.cache.rollback(0)
        self.features = self.recent[:, -(self.window // 2 - 1) :]

    def inherit(self, previous: Self, num_tokens: int, rows: tuple[int, int] = (0, 0)) -> int:
        forgotten = previous.offset + previous.num_states - num_tokens
        self.recent = previous.recent[:, : max(previous.recent.shape[1] - forgotten, 0)]
        return super().inherit(previous, num_tokens, rows)

    def room(self, num_seen: int) -> int:
        if self.fusion is not None and not self.recent.shape[1]:
            return 0
        return self.longest - num_seen

    def draft_block(self, known: torch.Tensor) -> DraftTokens:
        known = known.to(self.device)
        start, new = self.cache.get_seq_length(), self.features.shape[1]
        masks = known.new_full((1, self.block_length - 1), self.mask_token_id)
        context = known.new_zeros(1, new)  # placeholder for the target's states, which the injection puts there
        window = torch.cat([context, known, masks], dim=1)
        end = start + window.shape[1]
        limit = self.pattern.limit(torch.arange(start, end, device=self.device), start + new + known.shape[1], end)
        added = self._added(known.shape[1] + masks.shape[1])
        with self.injection.of(self.features, added):
            forward = self.runner.run(Window(window, [start], self.block_length, Sight(limit)), self.cache)
        (logits,) = forward.outputs
        self.cache.rollback(start + new)
        self.features = self.features[:, :0]
        ids, confidence, _, others = choose_tokens(logits, logits.shape[-1], None, None, self.num_alternatives)
        if self.model.vocabulary is not None:
            ids = self.model.vocabulary[ids]
            others = others and others._replace(token_ids=self.model.vocabulary[others.token_ids])
        return DraftTokens(ids, confidence, alternatives=others)

    @torch.no_grad()
    def _added(self, rows: int) -> torch.Tensor | None:
        """(1, rows, hidden), of the last token and of all rows after it."""
        if self.fusion is None:
            return None
        newest = self.fusion.prepared(self.recent[:, -1:])
        return torch.cat([self.fusion.token(newest), self.fusion.canvas(newest).expand(-1, rows - 1, -1)], dim=1)
