"""`hf-failfast serve` and `hf-failfast export-vllm`."""

from typing import Annotated, Any

import typer

from .options import with_failfast_options
from .startup import begin

PASSES_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@with_failfast_options()
def serve(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(help="Folder or Hub name of the causal LM to serve.")],
    drafter: Annotated[
        str | None, typer.Option(help="Folder or Hub name of its drafter.", show_default="the bundled one")
    ] = None,
    num_speculative_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of a draft.", show_default="the drafter's max_draft_length, 16 at most"),
    ] = None,
    options: Any = None,
) -> None:
    """Serve a target with its drafter by vLLM's own OpenAI-compatible server; what follows is passed on to it."""
    from ..serving.launch import launch

    begin(f"Checking {target} and its drafter")
    launch(target, drafter, num_speculative_tokens, options, ctx.args)


def export_vllm(
    drafter: Annotated[str, typer.Argument(help="Folder or Hub name of a drafter in DFlash's format.")],
    output: Annotated[str, typer.Argument(help="Folder that is written; must be empty or new.")],
) -> None:
    """Write a DFlash drafter as vLLM's `method: dflash` loads it; others are refused by name."""
    from ..serving.export import export_for_vllm

    begin(f"Reading {drafter}")
    print(export_for_vllm(drafter, output))
