"""`hf-failfast doctor`."""

import json
from typing import Annotated, Any

import typer

from .checks import check_models
from .interrupts import on_interrupt
from .options import (
    AsJson,
    Device,
    Dtype,
    MaxNewTokens,
    Prepack,
    PromptLines,
    Repeats,
    check_device,
    given_prompts,
    torch_dtype,
    with_failfast_options,
)
from .startup import begin

WRONG_INPUT = 2  # the exit code; 1 says that something was found


@with_failfast_options("length_policy")
def doctor(
    target: Annotated[
        str | None, typer.Argument(help="Folder or Hub name of the causal LM.", show_default="SmolLM2")
    ] = None,
    drafter: Annotated[
        str | None,
        typer.Argument(
            help="Folder or Hub name of its drafter; without one the target alone is examined.",
            show_default="SmolLM2's",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="What to answer; may be given several times.", show_default="the demo's four"
        ),
    ] = None,
    prompts: PromptLines = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts that are asked, at most.")] = 8,
    max_new_tokens: MaxNewTokens = 64,
    repeats: Repeats = 1,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    prepack: Prepack = False,
    as_json: AsJson = False,
    *,
    options: dict[str, Any],
) -> None:
    """Say whether a pair is exact, whether it fits, and what keeps it from being faster.

    Exit code 0: all is well with the texts; 1: float32 texts differ, or the pair cannot draft; 2: wrong input.
    """
    from ..pairs import DEMO_PROMPTS

    try:
        check_models(target=target, drafter=drafter)
        texts = given_prompts(prompt, prompts)[:limit] if prompt or prompts else DEMO_PROMPTS
        begin(f"Examining {target or 'SmolLM2-135M-Instruct'}, in its own dtype and in float32")
        from ..experiments.doctor.checkup import Checkup
        from ..experiments.doctor.examination import examine
        from .output.doctor import show
        from .output.progress import progress_bar

        check_device(device)
        checkup = Checkup(
            target,
            drafter,
            texts,
            max_new_tokens=max_new_tokens,
            repeats=repeats,
            dtype=torch_dtype(dtype),
            device=device,
            packs=prepack,
            options=options,
        )
        with on_interrupt("nothing was changed"), progress_bar() as on_progress:
            found = examine(checkup, on_progress)
    except (ValueError, OSError, typer.BadParameter) as error:
        message = error.message if isinstance(error, typer.BadParameter) else str(error)
        typer.echo(f"hf-failfast: {' '.join(message.split())}", err=True)
        raise typer.Exit(WRONG_INPUT) from None
    if as_json:
        print(json.dumps(found))
    else:
        show(found)
    raise typer.Exit(not found["exact"])
