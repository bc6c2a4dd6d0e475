"""What long work shows of itself: a bar at a terminal, elsewhere a line now and then; and how Ctrl-C ends it."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm

LINE_SECONDS = 30.0  # between two lines where stderr is no terminal


class Progress:
    """Progress on stderr. total: the units of work, None if not known. done: those that an earlier run did."""

    def __init__(self, total: int | None, done: int, unit: str, is_shown: bool = True) -> None:
        self.total, self.done, self.unit = total, done, unit
        self.has_lines = is_shown and not sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, unit=unit, disable=not is_shown or self.has_lines)
        self.started = self.last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, units: int, status: Mapping[str, str] | None = None) -> None:
        """status: what is shown beside the count, by name."""
        self.done += units
        self.bar.set_postfix(status, refresh=False)
        self.bar.update(units)
        now = time.monotonic()
        if self.has_lines and now - self.last >= LINE_SECONDS:
            self.last = now
            of_total = "" if self.total is None else f" of {self.total}"
            facts = "".join(f", {name} {value}" for name, value in (status or {}).items())
            print(f"{self.unit} {self.done}{of_total} after {now - self.started:.0f} s{facts}", file=sys.stderr)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.bar.write(text)


class StopRequest:
    """Whether Ctrl-C was pressed."""

    is_made = False


@contextmanager
def deferred_interrupt(is_wanted: bool = True) -> Iterator[StopRequest]:
    """Inside, the first Ctrl-C is only noted, for work that ends at a point of its own; the second one interrupts."""
    request = StopRequest()
    if not is_wanted or threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        request.is_made = True
        signal.signal(signal.SIGINT, before)
        print("\nstopping: this step ends and is stored; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
