"""Ctrl-C in training: the step that runs is finished, and what it made is saved."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interruption:
    """In this context the first SIGINT only sets `is_asked`; the second one interrupts at once. Where the context is
    not in the main thread, signals stay as they are."""

    def __init__(self) -> None:
        self.is_asked = False
        self._handler: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True
        self._restore()

    def _restore(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None
