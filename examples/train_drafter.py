"""Trains a drafter for a target on answers that the target writes, and measures the pair.

python examples/train_drafter.py TARGET OUTPUT [--minutes 60]; stopped and started again, it goes on.
"""

from pathlib import Path
from typing import Annotated

import typer

from hf_failfast.cli.app import app


def main(
    target: str,
    output: Path,
    minutes: Annotated[float, typer.Option(help="Of training; the data takes its own time.")] = 60,
    questions: Annotated[int, typer.Option(help="Questions that the target asks itself.")] = 2400,
) -> None:
    hf_failfast("train", "--target", target, "--output", output, "--minutes", minutes, "--questions", questions)
    hf_failfast("inspect", output, "--target", target)
    for prompt in ("Why is the sky blue?", "Write a Python function that reverses a list."):
        pair = ("--target", target, "--drafter", output)
        hf_failfast("generate", *pair, "--prompt", prompt, "--max-new-tokens", 48, "--check")


def hf_failfast(*words: object) -> None:
    """A command line of this package, in this process."""
    if code := app([str(word) for word in words], standalone_mode=False):
        raise SystemExit(code)


if __name__ == "__main__":
    typer.run(main)
