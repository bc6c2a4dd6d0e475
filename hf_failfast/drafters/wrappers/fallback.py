"""If the drafter fails, the request is finished with plain decoding."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, get_args

import torch

from ...engine.ragged import RaggedIds
from ...engine.runner import TopLogits
from ...policies.base import LengthPolicy
from ..base import Draft, DraftSession
from .threads import InThread

logger = logging.getLogger(__name__)

DrafterErrors = Literal["plain", "raise"]


class FallbackSession(DraftSession):
    """Wraps a session and gives it up at its first error: from then on every draft is empty.

    on_error: `plain` warns once and drafts no more; `raise` raises the error.
    timeout: seconds that a draft may take; None: no limit. With a timeout drafts are made in a thread, which is
        abandoned at the timeout: nothing else can leave a drafter that never returns.

    error: what the session was given up for. KeyboardInterrupt and SystemExit are not caught.
    """

    def __init__(self, session: DraftSession, on_error: DrafterErrors = "plain", timeout: float | None = None) -> None:
        if on_error not in get_args(DrafterErrors):
            raise ValueError(f"`drafter_errors` must be one of {list(get_args(DrafterErrors))}, but is {on_error!r}.")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"`drafter_timeout` must be a number of seconds > 0 or None, but is {timeout!r}.")
        self.session: DraftSession | None = session
        self.target_layers = session.target_layers
        self.top_logits = session.top_logits
        self.learned_steps = session.learned_steps
        self.on_error = on_error
        self.timeout = timeout
        self.error: BaseException | None = None

    def draft(self, text: RaggedIds, policy: LengthPolicy, room: Sequence[int]) -> Draft:
        if self.session is not None:
            try:
                if self.timeout is None:
                    return self.session.draft(text, policy, room)
                return InThread(self.session.draft, text, policy, room).result(self.timeout)
            except Exception as error:
                self.give_up(error)
        policy.start_draft(len(text.lengths), max(text.lengths), 0)
        return Draft.empty(text)

    def accept(self, counts: Sequence[int]) -> None:
        self._tell(lambda session: session.accept(counts))

    def overtaken(self, counts: Sequence[int]) -> None:
        self._tell(lambda session: session.overtaken(counts))

    def keep(self, rows: Sequence[int]) -> None:
        self._tell(lambda session: session.keep(rows))

    def observe(self, states: Sequence[torch.Tensor]) -> None:
        self._tell(lambda session: session.observe(states))

    def learn(self, text: RaggedIds, gained: Sequence[int], top: TopLogits) -> None:
        def tell(session: DraftSession) -> None:
            session.learn(text, gained, top)
            self.learned_steps = session.learned_steps

        self._tell(tell)

    def close(self) -> None:
        def tell(session: DraftSession) -> None:
            self.overlap_hits = session.overlap_hits
            session.close()

        self._tell(tell)

    def give_up(self, error: BaseException) -> None:
        """Forgets the session, and with it the memory that it holds."""
        if self.on_error == "raise":
            raise error
        if self.session is not None:
            logger.warning("The drafter failed (%s: %s); the rest is decoded plainly.", type(error).__name__, error)
            with suppress(Exception):  # the first error is the one that counts
                self.session.close()
        self.session, self.error = None, _without_frames(error)

    def _tell(self, what: Callable[[DraftSession], None]) -> None:
        if self.session is not None:
            try:
                what(self.session)
            except Exception as error:
                self.give_up(error)


def _without_frames(error: BaseException) -> BaseException:
    """The error without the calls that it passed, whose variables would keep the session's memory."""
    links = [error]
    while links:
        link = links.pop()
        link.__traceback__ = None
        links += [each for each in (link.__cause__, link.__context__) if each is not None]
    return error
