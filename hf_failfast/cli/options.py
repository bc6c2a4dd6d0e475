"""Options that several commands share, and what they are turned into."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens per answer, at most.")]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs per prompt and method; the median counts.")]
Dtype = Annotated[str, typer.Option(help="torch dtype of both models, or auto for the target checkpoint's.")]
Target = Annotated[str | None, typer.Option(help="Folder or Hub name of the causal LM.", show_default="SmolLM2")]
Drafter = Annotated[
    str | None, typer.Option(help="Folder or Hub name of its drafter.", show_default="the bundled one")
]
Device = Annotated[str, typer.Option(help="Where both models run.")]
Tasks = Annotated[str, typer.Option(help="lm-eval tasks and groups whose prompts are asked, comma-separated.")]
PromptsFile = Annotated[str | None, typer.Option(help="JSONL file of prompts, instead of tasks.")]
Prepack = Annotated[
    bool, typer.Option("--prepack", help="Pack the weights of all models for a CPU, for every method alike.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


# FailFast's options, for a command that is called with `options`.
_FAILFAST: dict[str, tuple[type, str]] = {
    "confidence_threshold": (float, "tau: a draft grows while no confidence in it is lower."),
    "chunk_length": (int, "N: tokens that a draft grows by."),
    "max_draft_length": (int, "N_max: tokens of a draft, at most."),
    "length_policy": (str, "confidence (by tau, N, N_max) or goodput (by measured costs)."),
    "draft_tree": (int, "Tokens that a round verifies as a tree, at most 64; 0: a chain."),
    "draft_lookup": (int, "Tokens that the text so far may add to a draft, at most 64; 0: none."),
}


def with_failfast_options(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command FailFast's options but some; its argument `options` gets those that the user gave, by name. The
    drafter's own stand for the others."""
    names = [name for name in _FAILFAST if name not in left_out]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapped(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            command(**values, options={name: value for name, value in given.items() if value is not None})

        own = [each for name, each in inspect.signature(command).parameters.items() if name != "options"]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name))
            for name in names
        ]
        wrapped.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        wrapped.__annotations__ = {each.name: each.annotation for each in (*own, *added)}
        return wrapped

    return decorate


def _annotation(name: str) -> Any:
    kind, text = _FAILFAST[name]
    return Annotated[kind | None, typer.Option(help=text, show_default="the drafter's own")]


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
