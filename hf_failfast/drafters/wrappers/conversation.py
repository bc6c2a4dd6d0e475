"""What a drafter has read of a conversation, kept from one call to the next."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ...engine.ragged import RaggedIds
from ...engine.runner import TopLogits
from ...policies.base import LengthPolicy
from ..base import DiffusionDrafter, Draft, DraftRequest, DraftSession
from .base import Wrapper

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Conversation(Wrapper):
    """A drafter for one conversation: `assistant_model=Conversation(drafter)` in every turn.

    Between the calls it keeps the drafter's K/V, so that a turn reads only what is new in its prompt. A prompt that
    differs from the text so far is read from the first difference on. The K/V cost memory as long as the conversation
    lives; any number of conversations may share a drafter, with its weights and graphs.

    The output is the same as with the drafter itself. After a call that ended in an exception, the next one reads the
    whole text. So do all calls with `mode="reference"` and with drafters that do not define `DraftSession.inherit`.

    Raises ValueError on batches, on another target than the first call's, and on `assistant_tokenizer`; RuntimeError
    on a call while another one runs.

    A copy, also in another process, begins anew: it reads all of its first prompt.
    """

    def __init__(self, drafter: DiffusionDrafter) -> None:
        if isinstance(drafter, Conversation) or not isinstance(drafter, DiffusionDrafter):
            raise ValueError(f"`drafter` must be a drafter of `load_drafter`, but is {type(drafter).__name__}.")
        super().__init__(drafter)
        self._begin()

    def _begin(self) -> None:
        self._target: weakref.ref[PreTrainedModel] | None = None
        self._last: ConversationSession | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_target", "_last", "_lock")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def start(self, request: DraftRequest) -> ConversationSession:
        if request.num_rows > 1:
            raise ValueError(
                f"A Conversation keeps one text, but there are {request.num_rows}: pass the drafter itself."
            )
        if self._target is not None and self._target() is not request.target:
            raise ValueError("`assistant_model` is a Conversation of another target: make one for each of them.")
        session = ConversationSession(self.drafter.start(request), self._last)
        self._target, self._last = weakref.ref(request.target), session
        return session

    @contextmanager
    def held(self) -> Iterator[None]:
        """Reserves the conversation for one call."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("This Conversation is in use by another call: make one for each conversation.")
        try:
            yield
        finally:
            self._lock.release()


class ConversationSession(DraftSession):
    """One call's session, which begins with what the session of the call before remembers of the same text.

    is_settled: no draft is in progress or waits for `accept`, so that all the session remembers is part of its text.
    """

    def __init__(self, session: DraftSession, previous: ConversationSession | None) -> None:
        self.session = session
        self.target_layers = session.target_layers
        self.top_logits = session.top_logits
        self.takes_back = session.takes_back
        self.previous = previous
        self.is_settled = True
        self.text: tuple[torch.Tensor, torch.Tensor] | None = None  # (1, n) accepted, (1, k) drafted after them
        self.length = 0  # of the accepted part of that text
        self.num_observed = 0  # tokens whose hidden states the session was handed

    def draft(self, text: RaggedIds, policy: LengthPolicy, room: Sequence[int]) -> Draft:
        num_reads = self._inherit(text.ids, policy)
        self.is_settled = False
        draft = self.session.draft(text, policy, room)
        self.text = text.ids, draft.token_ids.to(text.ids.device)
        return replace(draft, host_reads=draft.host_reads + num_reads)

    def accept(self, counts: Sequence[int]) -> None:
        assert self.text is not None
        self.session.accept(counts)
        self.length = self.text[0].shape[1] + counts[0]
        self.is_settled = True

    def overtaken(self, counts: Sequence[int]) -> None:
        self.session.overtaken(counts)
        self.length += counts[0]

    def observe(self, states: Sequence[torch.Tensor]) -> None:
        """Passes on the states, up to the last accepted token's, that follow those passed on before. Passes on none if
        some between are missing, as when the target's own cache holds a text that this session never saw."""
        (hidden_states,) = states
        known = self.num_observed - (self.length - hidden_states.shape[1])
        if 0 <= known < hidden_states.shape[1]:
            self.session.observe([hidden_states[:, known:]])
            self.num_observed = self.length

    def learn(self, text: RaggedIds, gained: Sequence[int], top: TopLogits) -> None:
        self.session.learn(text, gained, top)
        self.learned_steps = self.session.learned_steps

    def _inherit(self, token_ids: torch.Tensor, policy: LengthPolicy) -> int:
        """Before the first draft: takes over what the last call's session remembers of this text (1, n) without its
        last token, which every draft must read. Returns the number of host reads, 0 or 1."""
        previous, self.previous = self.previous, None
        if previous is None or previous.text is None or not previous.is_settled:
            return 0
        old = torch.cat(previous.text, dim=1)[:, : previous.length].to(token_ids.device)
        width = min(old.shape[1], token_ids.shape[1] - 1)
        common = int((old[0, :width] == token_ids[0, :width]).long().cumprod(dim=0).sum())  # host sync: common prefix
        self.num_observed = min(previous.num_observed, common)
        policy.resume(self.session.inherit(previous.session, self.num_observed if self.target_layers else common))
        return 1
