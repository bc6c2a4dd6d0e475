"""What a user sees while a command works: on stderr, gone when the work is done, nothing where that is no terminal."""

from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.status import Status


def progress_bar() -> Progress:
    """For work of known length."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def waiting(text: str) -> Status:
    """For work of unknown length, as a context."""
    return Console(stderr=True).status(text)
