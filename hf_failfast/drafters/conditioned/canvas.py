"""Drafter layers that read the target's hidden states of the context in place of their own.

Layer i is a copy of the target's layer l(i). At every context token it reads the input of the target's layer l(i), so
that before training its keys and values of the context equal the target's own. So the drafter sees the past at the
target's full depth (as DFlash, arXiv 2602.06036, and EAGLE-3, arXiv 2503.01840, do), and is shallow only at the
positions that it drafts. With input fusion the newest states are also part of these positions' input.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from ...config import FailFastConfig
from ...engine.window import Sight, Window
from ..base import DiffusionDrafter, DraftRequest, DraftSession, PerRow
from ..bodies.borrowed import BorrowingLM, SharedBody
from ..checkpoints.target_fit import check_layers, check_states, check_vocabulary
from ..denoising import Alternatives, DraftTokens, MostLikely
from ..masked.attention_patterns import CausalCanvas
from ..spec import DrafterSpec
from .block_session import BlockSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput


class _Given(threading.local):
    """What this thread's forward is given; nothing in a copy or another process."""

    states: torch.Tensor | None = None
    added: torch.Tensor | None = None

    def __reduce__(self) -> tuple[type[_Given], tuple[()]]:
        return _Given, ()


class _Injection:
    """The pre-hook of one layer. A captured forward includes it."""

    is_hf_failfast = True

    def __init__(self, index: int, given: _Given) -> None:
        self.index, self.given = index, given

    def __call__(self, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        states, added = self.given.states, self.given.added
        if states is None:
            return None
        hidden = arguments[0]
        given = states[:, :, self.index].to(hidden.dtype)
        own = hidden[:, given.shape[1] :]
        if self.index == 0 and added is not None:
            own = own + added.to(own.dtype)
        return (torch.cat([given, own], dim=1), *arguments[1:])


class HiddenStateInjection:
    """Replaces the first positions of the input of each decoder layer. Threads do not see each other's states."""

    def __init__(self, decoder: nn.Module) -> None:
        self._given = _Given()
        layers: Any = decoder.layers
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(_Injection(index, self._given))  # a copy's belongs to the copy

    @contextmanager
    def of(self, states: torch.Tensor | None, added: torch.Tensor | None = None) -> Iterator[None]:
        """In this context layer i reads states[:, :, i] of (B, m, layers, hidden) as its first m positions; `added`
        (B, q - m, hidden) is part of the other positions' input."""
        self._given.states, self._given.added = states, added
        try:
            yield
        finally:
            self._given.states = self._given.added = None


class ConditionedLM(BorrowingLM):
    """A `BorrowingLM` whose layers read given states at the first positions of a window."""

    def __init__(self, model: BorrowingLM, injection: HiddenStateInjection) -> None:
        super().__init__(model.body, model.embedding, model.head)
        self.injection = injection

    def __call__(
        self,
        *,
        input_ids: torch.Tensor,
        logits_to_keep: int | torch.Tensor,
        states: torch.Tensor | None = None,  # (B, m, layers, hidden)
        added: torch.Tensor | None = None,  # (B, q - m, hidden)
        **inputs: Any,
    ) -> CausalLMOutput:
        with self.injection.of(states, added):
            return super().__call__(input_ids=input_ids, logits_to_keep=logits_to_keep, **inputs)


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
        self.model = ConditionedLM(drafter.body.attach(request.target), drafter.injection)
        self.device = self.model.device
        self.target_layers = drafter.target_layers
        self.fusion = drafter.body.fusion
        self.mask_token_id = drafter.body.mask_token_id
        self.pattern = CausalCanvas(drafter.spec)
        self.runner = drafter.runners.drafter(self.model, request.target)
        vocabulary, config = self.model.vocabulary, request.target.config.get_text_config(decoder=True)
        num_ids = config.vocab_size if vocabulary is None else len(vocabulary)
        self.head = MostLikely(num_ids, None, request.num_alternatives)
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
        self.features = torch.cat([self.features.to(new.dtype), new], dim=1) if self.features.shape[1] else new
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
        given = Window(window, [start], self.block_length, Sight(limit), states=self.features, added=added)
        ids, confidence, *others = self.runner.run(given, self.cache, self.head).outputs
        self.cache.rollback(start + new)
        self.features = self.features[:, :0]
        if self.model.vocabulary is not None:
            ids = self.model.vocabulary[ids]
        if not others:
            return DraftTokens(ids, confidence)
        other_ids, probs = others
        if self.model.vocabulary is not None:
            other_ids = self.model.vocabulary[other_ids]
        return DraftTokens(ids, confidence, alternatives=Alternatives(other_ids, probs))

    @torch.no_grad()
    def _added(self, rows: int) -> torch.Tensor | None:
        """(1, rows, hidden), of the last token and of all rows after it."""
        if self.fusion is None:
            return None
        newest = self.fusion.prepared(self.recent[:, -1:])
        return torch.cat([self.fusion.token(newest), self.fusion.canvas(newest).expand(-1, rows - 1, -1)], dim=1)
