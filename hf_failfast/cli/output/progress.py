"""What a user sees while a command works: on stderr, gone when the work is done, nothing where that is no terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID, TimeElapsedColumn
from rich.status import Status


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """For work of known length: tell it the title of a part of the work and the share of it that is done, 0..1."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def on_progress(title: str, done: float) -> None:
            if title not in tasks:
                tasks[title] = progress.add_task(title, total=1.0)
            progress.update(tasks[title], completed=done)

        yield on_progress


def waiting(text: str) -> Status:
    """For work of unknown length, as a context."""
    return Console(stderr=True).status(text)
