"""What a command says before torch is there, and how it gets it."""

import typer


def begin(doing: str) -> None:
    """Says on stderr what the command does; then imports torch and transformers, which takes seconds.

    The output is for reading: no progress bars and no hints of the libraries between the answers.
    """
    typer.echo(f"{doing} ...", err=True)
    quiet()


def quiet() -> None:
    """Imports torch and transformers, silent from here on, with `custom_generate="hf_failfast"` known to them."""
    from transformers.utils import logging

    from ..generate import register

    register()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
