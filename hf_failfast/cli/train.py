"""`hf-failfast train`."""

import inspect
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..training.config import DataConfig, TrainingConfig
from ..training.options import configured, options_of
from .options import AsJson


def with_options_of(*settings: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of settings dataclasses before those of its own that have a default; the command
    gets them by name. An option of two dataclasses is one."""
    options = {each.name: each for kind in settings for _, each in options_of(kind)}
    added = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default,
            annotation=Annotated[
                each.kind | None if each.default is None else each.kind,
                typer.Option(help=each.help, show_default=each.shown or True),
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


@with_options_of(TrainingConfig, DataConfig)
def train(
    target: Annotated[str, typer.Option(help="Folder or Hub name of the causal LM to draft for.")],
    output: Annotated[Path, typer.Option(help="Folder of the drafter; a checkpoint in it is continued.")],
    *,
    data: Annotated[Path | None, typer.Option(help="Folder of the answers.", show_default="OUTPUT/data")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of training.", show_default="torch's")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the target, for the model card.")] = "apache-2.0",
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Train a diffusion drafter for any causal LM on answers that the target writes itself.

    Several processes or GPUs: `torchrun --nproc_per_node N -m hf_failfast.cli.app train ...`.
    """
    from ..training.run import Job, run

    given = {name: value for name, value in settings.items() if value is not None}
    if not given.keys() & {"steps", "minutes"}:
        given["minutes"] = 60
    training = configured(TrainingConfig, given)
    enough = max(64, (training.steps or DataConfig.questions) * training.batch_size)
    synthesis = configured(DataConfig, {"questions": min(DataConfig.questions, enough)} | given)
    command = shlex.join(["hf-failfast", *sys.argv[1:]])
    run(Job(target, output, data or output / "data", licence, command, threads), synthesis, training, as_json)
