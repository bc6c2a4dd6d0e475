"""What a user sees while a command works, on stderr: at a terminal a bar that goes when the work is done, elsewhere a
line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID, TimeElapsedColumn
from rich.status import Status

LINE_SECONDS = 30.0  # between two lines where stderr is no terminal


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """For work of known length: tell it the title of a part of the work and the share of it that is done, 0..1."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    lines = Lines()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def on_progress(title: str, done: float) -> None:
            if title not in tasks:
                tasks[title] = progress.add_task(title, total=1.0)
            progress.update(tasks[title], completed=done)
            if not console.is_terminal:
                lines.show(f"{title}: {done:.0%}")

        yield on_progress


class Lines:
    """Progress as lines on stderr, one every `LINE_SECONDS` at most."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()

    def show(self, text: str) -> None:
        now = time.monotonic()
        if now - self.last >= LINE_SECONDS:
            self.last = now
            Console(stderr=True, soft_wrap=True).print(
                f"{text} after {now - self.started:.0f} s", markup=False, highlight=False
            )


def waiting(text: str) -> Status:
    """For work of unknown length, as a context."""
    return Console(stderr=True).status(text)
