"""`hf-failfast adapt`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..eval.jsonl_prompts import read_prompts
from .checks import check_models, check_parents
from .interrupts import on_interrupt
from .options import AsJson, Device, Dtype, MaxNewTokens, check_device, check_prompts_file, torch_dtype
from .startup import begin


def adapt(
    target: Annotated[str, typer.Argument(help="Folder or Hub name of the target.")],
    drafter: Annotated[str, typer.Argument(help="Folder or Hub name of its drafter.")],
    prompts: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="A .jsonl file, or a .txt file of lines: prompts like those the drafter is for."
        ),
    ],
    output: Annotated[str, typer.Option(help="Folder for what was learned; `load_drafter` loads it.")] = "adapted",
    merged: Annotated[bool, typer.Option("--merged", help="Write a whole drafter, not a small adapter.")] = False,
    max_new_tokens: MaxNewTokens = 128,
    passes: Annotated[int, typer.Option(min=1, max=4, help="Steps per piece of text.")] = 2,
    rank: Annotated[int, typer.Option(min=1, help="Of the low-rank updates.")] = 8,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Let a drafter learn from the target's answers to your prompts; one prompt in five is held out to measure on."""
    check_prompts_file(prompts)
    check_models(target=target, drafter=drafter)
    check_parents([Path(output)])
    texts = [row["prompt"] for row in read_prompts(prompts)]
    begin("Answering the prompts, and learning from the answers, for minutes")
    from ..experiments.adaptation import adapt as adapted
    from ..pairs import load_pair
    from .output.progress import progress_bar

    check_device(device)
    pair = load_pair(target, drafter, torch_dtype(dtype), device)
    with on_interrupt("nothing was written"), progress_bar() as on_progress:
        learner, found = adapted(pair, texts, max_new_tokens, passes, rank, lambda done: on_progress("adapt", done))
    learner.save(output, merged)
    document = {**pair.names, **found, "output": output}
    if as_json:
        print(json.dumps(document))
        return
    for name in ("before", "after"):
        figure = document[name]
        print(
            f"{name}: {figure['tokens_per_round']:.2f} tokens per round ({figure['low']:.2f} to {figure['high']:.2f})"
        )
    print(
        f"{found['learned_steps']} steps, on {found['held_out_prompts']} held-out prompts; written to {Path(output)}"
    )
