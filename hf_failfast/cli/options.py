"""Options that several commands share, what is asked of their values, and what they are turned into."""

import inspect
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import FailFastConfig

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
DEVICES = re.compile(r"(cpu|mps|(cuda|xpu|npu)(:\d+)?)")


def _known_dtype(name: str) -> str:
    if name not in DTYPES:
        raise typer.BadParameter(f"{name!r} is not a torch dtype; try float32 or bfloat16.")
    return name


def _known_device(name: str) -> str:
    if DEVICES.fullmatch(name) is None:
        raise typer.BadParameter(f"{name!r} is not a device; try cpu, cuda or cuda:1.")
    return name


MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens per answer, at most.")]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs per prompt and method; the median counts.")]
Dtype = Annotated[
    str,
    typer.Option(
        metavar=f"[{'|'.join(DTYPES)}]",
        callback=_known_dtype,
        help="torch dtype of both models, or auto for the target checkpoint's.",
    ),
]
Target = Annotated[str | None, typer.Option(help="Folder or Hub name of the causal LM.", show_default="SmolLM2")]
Drafter = Annotated[
    str | None, typer.Option(help="Folder or Hub name of its drafter.", show_default="the bundled one")
]
Device = Annotated[
    str,
    typer.Option(metavar="[cpu|cuda|cuda:N|mps]", callback=_known_device, help="Where both models run."),
]
Tasks = Annotated[str, typer.Option(help="lm-eval tasks and groups whose prompts are asked, comma-separated.")]
PromptLines = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Prompts of a .jsonl file or of the lines of a text; - for standard input."),
]
PromptsFile = Annotated[
    str | None,
    typer.Option(
        "--prompts", metavar="FILE", help="Prompts of a .jsonl file or of the lines of a .txt file, instead of tasks."
    ),
]
Prepack = Annotated[
    bool, typer.Option("--prepack", help="Pack the weights of all models for a CPU, for every method alike.")
]
Temperature = Annotated[float, typer.Option(min=0.0, help="0: greedy answers; above: sampled ones.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


# FailFast's options, for a command that is called with `options`.
_FAILFAST: dict[str, tuple[type, str]] = {
    "confidence_threshold": (float, "tau: a draft grows while no confidence in it is lower"),
    "chunk_length": (int, "N: tokens that a draft grows by"),
    "max_draft_length": (int, "N_max: tokens of a draft, at most; N or more"),
    "length_policy": (
        str,
        "confidence (by tau, N, N_max), goodput (by measured costs) or diffuspec (by past rounds)",
    ),
    "draft_tree": (int, "tokens that a round verifies as a tree, at most 64; 0: a chain"),
    "draft_lookup": (int, "tokens that the text so far may add to a draft, at most 64; 0: none"),
    "draft_reuse": (bool, "propose the rest of a rejected draft again"),
    "self_selection": (int, "drafts of one pass that are verified together, at most 64; 1: one"),
    "exact": (bool, "round each token as if it were alone: the text of such forwards without drafts; on a CPU"),
    "overlap": (bool, "make the next draft while the target verifies this one"),
}


def with_failfast_options(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command FailFast's options but some; its argument `options` gets those that the user gave, by name. The
    drafter's own stand for the others."""
    names = [name for name in _FAILFAST if name not in left_out]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapped(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            options = {name: value for name, value in given.items() if value is not None}
            _check(options)
            command(**values, options=options)

        added = [_parameter(name, _annotation(name)) for name in names]
        return _with_parameters(wrapped, [*_parameters(command, "options"), *added])

    return decorate


def with_old_name(old: str, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Lets a command's option `name` be given under its old name, too, with a line that says so."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hidden = f"old_{name}"

        @wraps(command)
        def wrapped(**values: Any) -> None:
            given = values.pop(hidden)
            if given is not None:
                typer.echo(f"{old} is called --{name} now; the old name will go.", err=True)
                values[name] = given
            command(**values)

        own = _parameters(command)
        kind: Any = next(each.annotation for each in own if each.name == name).__origin__
        annotation: Any = Annotated[kind | None, typer.Option(old, hidden=True, help=f"Now --{name}.")]
        return _with_parameters(wrapped, [*own, _parameter(hidden, annotation)])

    return decorate


def _parameters(command: Callable[..., None], *left_out: str) -> list[inspect.Parameter]:
    return [each for name, each in inspect.signature(command).parameters.items() if name not in left_out]


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _with_parameters(command: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _annotation(name: str) -> Any:
    kind, text = _FAILFAST[name]
    bound = bound_of(FailFastConfig, name, "" if kind is str else -1)
    return Annotated[kind | None, typer.Option(help=f"{text} ({bound}).", show_default="the drafter's own")]


def bound_of(settings: Callable[..., object], name: str, value: Any) -> str | None:
    """What settings demand of a field, in the words with which they refuse a value; None if they take it."""
    try:
        settings(**{name: value})
    except ValueError as error:
        found = re.match(rf"`{name}` must be (.*), (?:got|but is) ", str(error))
        return found[1] if found else None
    return None


def _check(options: dict[str, Any]) -> None:
    """Raises BadParameter on a value out of its range, and on a draft that could not hold a chunk."""
    try:
        FailFastConfig().with_options(options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    chunk, longest = options.get("chunk_length"), options.get("max_draft_length")
    if chunk is not None and longest is not None and longest < chunk:
        raise typer.BadParameter(f"`max_draft_length` must be at least `chunk_length`, {chunk}, but is {longest}.")


def task_names(tasks: str, prompts_file: str | None) -> tuple[str, ...]:
    """The tasks that are asked: the named ones, or that of the file of prompts."""
    return tuple(tasks.split(",")) if prompts_file is None else ("failfast_prompts",)


def check_prompts_file(file: str | None) -> None:
    """Raises BadParameter if the file of prompts is none."""
    if file is not None:
        _read_prompts(file, is_jsonl=True)


def given_prompts(texts: list[str] | None, file: str | None) -> list[str]:
    """The prompts of `--prompt` and `--prompts`; where neither was given, what stands on standard input, as one.

    A `.jsonl` file holds one prompt an object, any other file one a line; `-` is standard input. Raises BadParameter
    if there is none at all.
    """
    prompts = list(texts or []) + ([] if file is None else _read_prompts(file))
    if texts is None and file is None and not sys.stdin.isatty():
        prompts = [text for text in [sys.stdin.read().strip()] if text]
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise typer.BadParameter("there is nothing to answer: give --prompt TEXT, --prompts FILE or standard input.")
    return prompts


def _read_prompts(file: str, is_jsonl: bool = False) -> list[str]:
    if file != "-" and not Path(file).is_file():
        raise typer.BadParameter(f"`prompts` must name a file, but there is none at {file!r}.", param_hint="--prompts")
    if is_jsonl or file.endswith(".jsonl"):
        from ..eval.jsonl_prompts import read_prompts

        try:
            return [row["prompt"] for row in read_prompts(file)]
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--prompts") from None
    with nullcontext(sys.stdin) if file == "-" else open(file, encoding="utf-8-sig") as lines:
        return [line.rstrip("\n") for line in lines if line.strip()]  # `splitlines` would also split inside a line


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

    return name if name == "auto" else getattr(torch, name)


def check_device(name: str) -> None:
    """Raises ValueError if this machine has no such device."""
    import torch

    kind = name.partition(":")[0]
    if kind == "cpu":
        return
    if kind == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        raise ValueError(f"`device` is {name!r}, but the installed torch ({torch.__version__}) is for CPUs only.")
    backend = getattr(torch, kind, None)
    if backend is None or not backend.is_available():
        raise ValueError(f"`device` is {name!r}, but torch finds no {kind} device here.")
    index = name.partition(":")[2]
    if index and int(index) >= backend.device_count():
        raise ValueError(f"`device` is {name!r}, but this machine has {backend.device_count()} of them, from 0.")
