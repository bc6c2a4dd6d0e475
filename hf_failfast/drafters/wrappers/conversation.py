"""What a drafter has read of a conversation, kept from one call to the next."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...engine.runner_pool import Runners
from ...policies.base import LengthPolicy
from ..base import BatchSession, DiffusionDrafter, Draft, RowSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DraftSession(DiffusionDrafter):
    """A drafter for one conversation: `assistant_model=DraftSession(drafter)` in every turn.

    Between the calls it keeps the drafter's K/V, so that a turn reads only what is new in its prompt. A prompt that
    differs from the text so far is read from there on. Costs memory for as long as the session lives; weights and
    graphs remain the drafter's, and any number of sessions may share it.

    The output is the same as with the drafter itself. A call that ended in an exception is forgotten, and with it the
    text before it: the next one reads all. So do `mode="reference"` and drafters that do not define
    `RowSession.inherit`.

    Raises ValueError on batches, on another target than the first call's, and on `assistant_tokenizer`; RuntimeError
    on a call while another one runs.
    """

    def __init__(self, drafter: DiffusionDrafter) -> None:
        if isinstance(drafter, DraftSession) or not isinstance(drafter, DiffusionDrafter):
            raise ValueError(f"`drafter` must be a drafter of `load_drafter`, but is {type(drafter).__name__}.")
        self.drafter = drafter
        self.config = drafter.config
        self.made_for = drafter.made_for
        self.drafts_by_chunks = drafter.drafts_by_chunks
        self._target: weakref.ref[PreTrainedModel] | None = None
        self._last: KeptSession | None = None
        self._lock = threading.Lock()

    @property
    def runners(self) -> Runners:
        """The drafter's."""
        return self.drafter.runners

    def start(self, target: PreTrainedModel, capacity: int, eos_token_ids: torch.Tensor | None) -> KeptSession:
        if self._target is not None and self._target() is not target:
            raise ValueError("`assistant_model` is a DraftSession of another target: make one for each of them.")
        session = KeptSession(self.drafter.start(target, capacity, eos_token_ids), self._last)
        self._target, self._last = weakref.ref(target), session
        return session

    def start_batch(
        self, target: PreTrainedModel, capacity: int, eos_token_ids: torch.Tensor | None, num_rows: int
    ) -> BatchSession:
        raise ValueError(f"A DraftSession keeps one text, but there are {num_rows}: pass the drafter itself.")

    @contextmanager
    def held(self) -> Iterator[None]:
        """For the time of one call."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("This DraftSession is in use by another call: make one for each conversation.")
        try:
            yield
        finally:
            self._lock.release()


class KeptSession(RowSession):
    """One call's session, which begins with what the session of the call before remembers of the same text.

    is_settled: no draft is being made or waits for `accept`: what the session remembers is part of its text.
    """

    def __init__(self, session: RowSession, previous: KeptSession | None) -> None:
        super().__init__(session.eos_token_ids)
        self.session = session
        self.target_layers = session.target_layers
        self.previous = previous
        self.is_settled = True
        self.text: tuple[torch.Tensor, torch.Tensor] | None = None  # (1, n) accepted, (1, k) drafted behind them
        self.length = 0  # of that text, as far as it is accepted
        self.num_observed = 0  # tokens whose hidden states the session was handed

    def draft(self, token_ids: torch.Tensor, policy: LengthPolicy, max_tokens: int) -> Draft:
        num_reads = self._inherit(token_ids, policy)
        self.is_settled = False
        self.num_tokens = token_ids.shape[1]
        self.session.warp = self.warp
        draft = self.session.draft(token_ids, policy, max_tokens)
        self.text = token_ids, draft.token_ids.to(token_ids.device)
        return replace(draft, host_reads=draft.host_reads + num_reads)

    def accept(self, num_accepted: int) -> None:
        self.session.accept(num_accepted)
        self.length = self.num_tokens + num_accepted
        self.is_settled = True

    def observe(self, hidden_states: torch.Tensor) -> None:
        """Of the tokens up to the last accepted one. Passes on those that follow the ones handed over before; none, if
        some between them are missing, as when the target's own cache holds a text that this session never saw."""
        known = self.num_observed - (self.length - hidden_states.shape[1])
        if 0 <= known < hidden_states.shape[1]:
            self.session.observe(hidden_states[:, known:])
            self.num_observed = self.length

    def _inherit(self, token_ids: torch.Tensor, policy: LengthPolicy) -> int:
        """Before the first draft: takes over what the last call's session remembers of this text (1, n), except for
        its last token, which no draft can do without. Returns the number of host reads, 0 or 1."""
        previous, self.previous = self.previous, None
        if previous is None or previous.text is None or not previous.is_settled:
            return 0
        old = torch.cat(previous.text, dim=1)[:, : previous.length].to(token_ids.device)
        width = min(old.shape[1], token_ids.shape[1] - 1)
        common = int((old[0, :width] == token_ids[0, :width]).long().cumprod(dim=0).sum())  # host sync: common prefix
        self.num_observed = min(previous.num_observed, common)
        policy.resume(self.session.inherit(previous.session, self.num_observed if self.target_layers else common))
        return 1
