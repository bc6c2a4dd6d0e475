"""A drafter that fails must not take the request down: the rest of it is decoded plainly."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch

from ...engine.ragged import Rows
from ...policies.base import LengthPolicy
from ..base import BatchSession, Draft

logger = logging.getLogger(__name__)

DrafterErrors = Literal["plain", "raise"]


class GuardedSession(BatchSession):
    """Another session, which is given up at its first error: from then on every draft is empty.

    on_error: `plain`: one warning, and no draft any more. `raise`: the error itself.
    timeout: seconds that a draft may take, None for any; with one, drafts are made in a thread, since nothing else can
        leave a drafter that never returns. The thread is abandoned.

    error: what the session was given up for. KeyboardInterrupt and the like are not caught.
    """

    def __init__(self, session: BatchSession, on_error: DrafterErrors = "plain", timeout: float | None = None) -> None:
        if on_error not in get_args(DrafterErrors):
            raise ValueError(f"`drafter_errors` must be one of {list(get_args(DrafterErrors))}, but is {on_error!r}.")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"`drafter_timeout` must be a number of seconds > 0 or None, but is {timeout!r}.")
        self.session: BatchSession | None = session
        self.target_layers = session.target_layers
        self.on_error = on_error
        self.timeout = timeout
        self.error: BaseException | None = None

    def draft_rows(self, text: Rows, policy: LengthPolicy, max_tokens: Sequence[int]) -> Draft:
        if self.session is not None:
            self.session.warp = self.warp
        draft = self._call("draft_rows", text, policy, max_tokens)
        if draft is None:
            policy.start_draft(len(text.lengths), max(text.lengths), 0)
            none = text.values[:, :0]
            return Draft(none, none.float(), 0, 0)
        assert isinstance(draft, Draft)
        return draft

    def accept_rows(self, num_accepted: Sequence[int]) -> None:
        self._call("accept_rows", num_accepted)

    def keep_rows(self, rows: Sequence[int]) -> None:
        self._call("keep_rows", rows)

    def observe_rows(self, hidden_states: Sequence[torch.Tensor]) -> None:
        self._call("observe_rows", hidden_states)

    def give_up(self, error: BaseException) -> None:
        """Forgets the session, and with it the memory that it holds."""
        if self.on_error == "raise":
            raise error
        if self.session is not None:
            logger.warning("The drafter failed (%s: %s); the rest is decoded plainly.", type(error).__name__, error)
        self.session, self.error = None, error

    def _call(self, name: str, *arguments: Any) -> Any:
        if self.session is None:
            return None
        method = getattr(self.session, name)
        try:
            if self.timeout is None or name != "draft_rows":
                return method(*arguments)
            return _call_in_thread(method, arguments, self.timeout)
        except Exception as error:
            self.give_up(error)
        return None


def _call_in_thread(method: Callable[..., Any], arguments: tuple[Any, ...], timeout: float) -> Any:
    results: list[Any] = []
    errors: list[BaseException] = []

    @torch.no_grad()  # the mode is a thread's own
    def run() -> None:
        try:
            results.append(method(*arguments))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="hf_failfast drafter")
    thread.start()
    thread.join(timeout)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no draft within `drafter_timeout`={timeout} seconds")
    return results[0]
