"""Options that several commands share, and what they are turned into."""

from typing import Annotated, Any

import typer

MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens per answer, at most.")]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs per prompt and method; the median counts.")]
Dtype = Annotated[str, typer.Option(help="torch dtype of both models, or auto for the target checkpoint's.")]
_OWN = "the drafter's own"
ConfidenceThreshold = Annotated[
    float | None, typer.Option(help="tau: a draft grows while no confidence in it is lower.", show_default=_OWN)
]
ChunkLength = Annotated[int | None, typer.Option(help="N: tokens that a draft grows by.", show_default=_OWN)]
MaxDraftLength = Annotated[int | None, typer.Option(help="N_max: tokens of a draft, at most.", show_default=_OWN)]
Target = Annotated[str | None, typer.Option(help="Folder or Hub name of the causal LM.", show_default="SmolLM2")]
Drafter = Annotated[
    str | None, typer.Option(help="Folder or Hub name of its drafter.", show_default="the bundled one")
]
Device = Annotated[str, typer.Option(help="Where both models run.")]
Tasks = Annotated[str, typer.Option(help="lm-eval tasks and groups whose prompts are asked, comma-separated.")]
PromptsFile = Annotated[str | None, typer.Option(help="JSONL file of prompts, instead of tasks.")]
LengthPolicy = Annotated[
    str | None,
    typer.Option(help="confidence (by tau, N, N_max) or goodput (by measured costs).", show_default=_OWN),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def failfast_options(**values: float | int | str | None) -> dict[str, Any]:
    """The FailFast options that were given; the drafter's own stand for the others."""
    return {name: value for name, value in values.items() if value is not None}


def task_names(tasks: str, prompts_file: str | None) -> tuple[str, ...]:
    """The tasks that are asked: the named ones, or that of the file of prompts."""
    return tuple(tasks.split(",")) if prompts_file is None else ("failfast_prompts",)


def numbers(text: str | None) -> tuple[float, ...] | None:
    """Numbers separated by commas; None for none given."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0.3,0.5.") from None


def torch_dtype(name: str) -> Any:
    """The torch dtype of that name; "auto" stays a name."""
    import torch

    dtype = getattr(torch, name, None)
    if name != "auto" and not isinstance(dtype, torch.dtype):
        raise typer.BadParameter(f"{name!r} is not a torch dtype; try float32 or bfloat16.", param_hint="--dtype")
    return dtype or name


def quiet() -> None:
    """The output is for reading: no progress bars and no hints of the libraries between the answers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
