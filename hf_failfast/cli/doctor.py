"""`hf-failfast doctor`."""

import json
from typing import Annotated, Any

import typer

from .options import (
    AsJson,
    Device,
    Dtype,
    MaxNewTokens,
    Prepack,
    Repeats,
    quiet,
    torch_dtype,
    with_failfast_options,
)


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
    prompts: Annotated[str | None, typer.Option(help="JSONL file of prompts.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What to answer; may be given several times.", show_default="the demo's four"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts of the file, at most.")] = 8,
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
    try:
        if prompt and prompts:
            raise ValueError("`--prompt` and `--prompts` are two ways to give prompts: use one of them.")
        texts = prompt or _read(prompts, limit)
        from ..experiments.doctor.checkup import Checkup
        from ..experiments.doctor.examination import examine
        from .output.doctor import show
        from .output.progress import progress_bar

        quiet()
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
        with progress_bar() as on_progress:
            found = examine(checkup, on_progress)
    except (ValueError, OSError) as error:
        typer.echo(f"hf-failfast: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps(found))
    else:
        show(found)
    raise typer.Exit(not found["exact"])


def _read(path: str | None, limit: int) -> tuple[str, ...]:
    if path is not None:
        from ..eval.jsonl_prompts import read_prompts

        return tuple(row["prompt"] for row in read_prompts(path)[:limit])
    from ..pairs import DEMO_PROMPTS

    return DEMO_PROMPTS
