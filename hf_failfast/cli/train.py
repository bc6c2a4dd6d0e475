"""`hf-failfast train`."""

import inspect
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..training.config import DataConfig, TrainingConfig
from ..training.options import Option, configured, options_of
from .checks import check_folder, check_parents, check_reach
from .extras import require
from .interrupts import Stopped
from .options import AsJson, bound_of
from .startup import begin


def with_options_of(*settings: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of settings dataclasses before those of its own that have a default; the command
    gets them by name. An option of two dataclasses is one."""
    bounds = {each.name: _bound(kind, field, each) for kind in settings for field, each in options_of(kind)}
    options = {each.name: each for kind in settings for _, each in options_of(kind)}
    added = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default,
            annotation=Annotated[
                each.kind | None if each.default is None else each.kind,
                typer.Option(help=each.help.removesuffix(".") + bounds[each.name], show_default=each.shown or True),
            ],
        )
        for each in options.values()
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [each for each in inspect.signature(command).parameters.values() if each.kind is not each.VAR_KEYWORD]
        required = [each for each in own if each.default is each.empty]
        rest = [each for each in own if each.default is not each.empty]
        parameters = [*required, *added, *rest]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate


def _bound(settings: type, field: str, option: Option) -> str:
    """What the settings demand of an option, ready to stand after its help."""
    needed = {"steps": 1} if settings is TrainingConfig and field not in ("steps", "minutes") else {}
    is_text = option.kind in (str, str | None)
    is_number = option.kind in (int, float, int | None, float | None)
    bound = bound_of(partial(settings, **needed), field, "" if is_text else -1) if is_text or is_number else None
    return "." if bound is None else f" ({bound})."


@with_options_of(TrainingConfig, DataConfig)
def train(
    target: Annotated[str, typer.Option(help="Folder or Hub name of the causal LM to draft for.")],
    output: Annotated[Path, typer.Option(help="Folder of the drafter; a checkpoint in it is continued.")],
    *,
    data: Annotated[Path | None, typer.Option(help="Folder of the answers.", show_default="OUTPUT/data")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the target, for the model card.")] = "apache-2.0",
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Train a diffusion drafter for any causal LM on answers that the target writes itself.

    Several processes or GPUs: `torchrun --nproc_per_node N -m hf_failfast.cli.app train ...`.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if not given.keys() & {"steps", "minutes"}:
        given["minutes"] = 60
    training, synthesis = _settings(given)
    _check(target, output, data, training)
    begin(f"Training a drafter for {target} in {output}")
    from ..training.run import Job, run

    command = shlex.join(["hf-failfast", *sys.argv[1:]])
    data = data or output / "data"
    is_new = {folder: not folder.exists() for folder in (data, output)}
    try:
        run(Job(target, output, data, licence, command, threads), synthesis, training, as_json)
    except KeyboardInterrupt:
        raise Stopped(_left(output, data, is_new)) from None


def _settings(given: dict[str, Any]) -> tuple[TrainingConfig, DataConfig]:
    """Raises BadParameter on a value out of its range and on a file that is not there, ValueError on a text that
    cannot be read."""
    for _, each in options_of(TrainingConfig):
        if each.name in given:
            each.read(given[each.name])
    named = [(name, given[name]) for name in ("prompts", "unseen") if name in given]
    for name, path in named + [("source", each) for each in given.get("source", ())]:
        if Path(path).suffix in (".txt", ".jsonl") and not Path(path).is_file():
            raise typer.BadParameter(f"there is no file {path!r}.", param_hint=f"--{name}")
    try:
        training = configured(TrainingConfig, given)
        enough = max(64, (training.steps or DataConfig.questions) * training.batch_size)
        return training, configured(DataConfig, {"questions": min(DataConfig.questions, enough)} | given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _check(target: str, output: Path, data: Path | None, training: TrainingConfig) -> None:
    """Raises what can be known before torch is imported."""
    require("train", "tqdm", "matplotlib", "accelerate")
    if training.optimizer == "adamw8bit":
        require("quantised", "bitsandbytes")
    check_folder("target", target)
    check_parents([output / "config.json", data])
    if not Path(target).is_dir() and "/" in target:
        check_reach(target)


def _left(output: Path, data: Path, is_new: dict[Path, bool]) -> str:
    """What Ctrl-C leaves, in words; folders that were made and hold nothing are taken away again."""
    for folder, was_made in is_new.items():
        if was_made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if (output / "checkpoint.pt").is_file():
        return f"{output} holds the drafter as it was last stored; the same command goes on there"
    if (data / "manifest.json").is_file():
        return f"{data} holds the answers written so far; the same command goes on there"
    return "nothing was written"
