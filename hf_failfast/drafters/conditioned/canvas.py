"""Drafter layers that read the target's hidden states of the context in place of their own.

Layer i is a copy of the target's layer l(i). At every context token it reads the input of the target's layer l(i), so
that before training its keys and values of the context equal the target's own. So the drafter sees the past at the
target's full depth (as DFlash, arXiv 2602.06036, and EAGLE-3, arXiv 2503.01840, do), and is shallow only at the
positions that it drafts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...config import FailFastConfig
from ...engine.kernels import most_likely
from ...engine.runner import EagerRunner
from ...engine.window import Sight, Window
from ..base import DiffusionDrafter, DraftRequest, DraftSession, PerRow
from ..bodies.borrowed import SharedBody
from ..checkpoints.target_fit import check_layers, check_vocabulary
from ..denoising import DraftTokens
from ..masked.attention_patterns import CausalCanvas
from ..spec import DrafterSpec
from .block_session import CONDITIONED, BlockSession

if TYPE_CHECKING:
    pass


class HiddenStateInjection:
    """Replaces the first positions of the input of each decoder layer. Threads do not see each other's states."""

    def __init__(self, decoder: nn.Module) -> None:
        self._states: dict[int, torch.Tensor | None] = {}  # by thread
        layers: Any = decoder.layers
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._inject, index))  # a copy's belongs to the copy

    @contextmanager
    def of(self, states: torch.Tensor | None) -> Iterator[None]:
        """In this context layer i reads states[:, :, i] of (B, m, layers, hidden) as its first m positions."""
        self._states[get_ident()] = states
        try:
            yield
        finally:
            del self._states[get_ident()]

    def _inject(self, index: int, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The pre-hook of layer `index`."""
        states = self._states.get(get_ident())
        if states is None:
            return None
        hidden = arguments[0]
        given = states[:, :, index].to(hidden.dtype)
        return (torch.cat([given, hidden[:, given.shape[1] :]], dim=1), *arguments[1:])


class ConditionedDrafter(DiffusionDrafter):
    """A causal-canvas checkpoint of this project that was trained on the target's hidden states."""

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
        config = request.target.config.get_text_config(decoder=True)
        check_vocabulary(self.body.config.get_text_config(decoder=True).vocab_size, config.vocab_size)
        check_layers(self.target_layers, config.num_hidden_layers)
        self.runners.explain(request.target, CONDITIONED)
        return PerRow.of(request, lambda one: ConditionedSession(self, one))

    def modules(self) -> Iterator[nn.Module]:
        return self.body.modules()


class ConditionedSession(BlockSession):
    """Drafts one canvas per round. The last token and the masks after it pass through the layers as in training."""

    def __init__(self, drafter: ConditionedDrafter, request: DraftRequest) -> None:
        self.model = drafter.body.attach(request.target)
        self.device = self.model.device
        self.target_layers = drafter.target_layers
        self.injection = drafter.injection
        self.mask_token_id = drafter.body.mask_token_id
        self.pattern = CausalCanvas(drafter.spec)
        self.runner = EagerRunner(self.model)
        super().__init__(
            self.runner.new_cache(request.capacity + drafter.canvas_length),
            torch.zeros(1, 0, len(self.target_layers), self.model.config.hidden_size, device=self.device),
            drafter.canvas_length,
            request.eos_on(self.device),
        )

    def observe(self, states: Sequence[torch.Tensor]) -> None:
        new = states[0].to(self.device).unflatten(-1, (len(self.target_layers), -1))
        self.features = torch.cat([self.features.to(new.dtype), new], dim=1)

    def draft_block(self, last: torch.Tensor) -> DraftTokens:
        last = last.to(self.device)
        start, new = self.cache.get_seq_length(), self.features.shape[1]
        masks = last.new_full((1, self.block_length - 1), self.mask_token_id)
        context = last.new_zeros(1, new)  # placeholder for the target's states, which the injection puts there
        window = torch.cat([context, last, masks], dim=1)
        end = start + window.shape[1]
        limit = self.pattern.limit(torch.arange(start, end, device=self.device), start + new + 1, end)
        with self.injection.of(self.features):
            forward = self.runner.run(Window(window, [start], self.block_length, Sight(limit)), self.cache)
        (logits,) = forward.outputs
        self.cache.rollback(start + new)
        self.features = self.features[:, :0]
        ids, confidence = most_likely(logits, logits.shape[-1], None)
        return DraftTokens(ids if self.model.vocabulary is None else self.model.vocabulary[ids], confidence)
