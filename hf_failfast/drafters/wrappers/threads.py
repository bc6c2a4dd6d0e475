"""A draft that is made in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from ..base import Draft


class InThread:
    """A call that makes a draft, begun at once. The process may end before it does."""

    def __init__(self, method: Callable[..., Draft], *arguments: Any) -> None:
        self._drafts: list[Draft] = []
        self._errors: list[BaseException] = []
        self._is_abandoned = False

        @torch.no_grad()  # the mode is a thread's own
        def run() -> None:
            try:
                self._drafts.append(method(*arguments))
            except BaseException as error:
                self._errors.append(error)

        self._thread = threading.Thread(target=run, daemon=True, name="hf_failfast drafter")
        self._thread.start()

    def wait(self, timeout: float | None) -> None:
        """Returns at the end of the call, or after `timeout` seconds; at once if it was abandoned."""
        if not self._is_abandoned:
            self._thread.join(timeout)

    @property
    def is_done(self) -> bool:
        """Whether it has made a draft."""
        return bool(self._drafts)

    def result(self, timeout: float | None) -> Draft:
        """The draft, once it is made. Raises the call's error, and TimeoutError after `timeout` seconds, whose call is
        abandoned: nothing else can leave a drafter that never returns."""
        self.wait(timeout)
        if self._errors:
            raise self._errors[0]
        if not self._drafts:
            self._is_abandoned = True
            raise TimeoutError(f"no draft within `drafter_timeout`={timeout} seconds")
        return self._drafts[0]
