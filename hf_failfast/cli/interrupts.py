"""Ctrl-C: one line that says what is kept and how to go on."""

from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(KeyboardInterrupt):
    """Ctrl-C, with what it leaves in words."""

    def __init__(self, left: str = "nothing was written") -> None:
        super().__init__(f"stopped: {left}.")


@contextmanager
def on_interrupt(left: str) -> Iterator[None]:
    """Says what Ctrl-C leaves of the work inside."""
    try:
        yield
    except Stopped:
        raise
    except KeyboardInterrupt:
        raise Stopped(left) from None
