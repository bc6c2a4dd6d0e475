"""`hf-failfast inspect`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .checks import check_models
from .options import AsJson
from .startup import quiet

if TYPE_CHECKING:
    from ..drafters.checkpoints.inspection import Inspection


def inspect(
    checkpoint: Annotated[str, typer.Argument(help="Folder or Hub name of a diffusion drafter.")],
    target: Annotated[str | None, typer.Option(help="Folder or Hub name of a target to draft for.")] = None,
    attention: Annotated[str | None, typer.Option(help="As for load_drafter, where the config does not say.")] = None,
    shift: Annotated[int | None, typer.Option(min=0, max=1, help="As for load_drafter.")] = None,
    mask_token_id: Annotated[int | None, typer.Option(min=0, help="As for load_drafter.")] = None,
    block_size: Annotated[int | None, typer.Option(min=1, help="As for load_drafter.")] = None,
    noise: Annotated[str | None, typer.Option(help="As for load_drafter: mask or random.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a drafter checkpoint is, and whether it fits a target. Reads headers, loads no weights."""
    from rich.console import Console
    from rich.table import Table

    from ..drafters.checkpoints.inspection import inspect_checkpoint

    spec = {"attention": attention, "shift": shift, "mask_token_id": mask_token_id, "block_size": block_size}
    given: dict[str, Any] = {name: value for name, value in {**spec, "noise": noise}.items() if value is not None}
    if not as_json:
        typer.echo(f"Reading {checkpoint} ...")
    if target is not None:
        check_models(target=target)
        quiet()  # only a fit is judged with torch in any case
    found = inspect_checkpoint(checkpoint, target, **given)
    if as_json:
        print(json.dumps(asdict(found) | {"target": target}))
    else:
        table = Table(show_header=False)
        for row in found.rows():
            table.add_row(*row)
        if target is not None:
            table.add_row("fits the target", found.misfit or _fit(found))
        Console().print(table)
    raise typer.Exit(found.misfit is not None)


def _fit(found: "Inspection") -> str:
    """What can be said of a target whose shape fits."""
    if found.is_made_for_target:
        return "yes, it was made for this model"
    if found.is_made_for_target is None:
        return "yes, by its shape; whether it was made for this model is not recorded"
    return (
        f"by its shape, but it was made for another model ({found.made_for}): the text stays right, but few drafts "
        "may be accepted; train one with hf-failfast train"
    )
