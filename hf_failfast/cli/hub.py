"""`hf-failfast export-hub` and `hf-failfast push`."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from .checks import check_models
from .interrupts import on_interrupt
from .options import AsJson

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def export_hub(
    output: Annotated[Path, typer.Argument(help="Folder of the repository; new, or empty.")],
    drafter: Annotated[
        str | None, typer.Option(help="Folder or Hub name of a drafter that the repository holds and uses by default.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Folder or Hub name of a target that the drafter must fit.")
    ] = None,
) -> None:
    """Write a repository that works as custom_generate="user/repo" where hf_failfast is not installed."""
    if drafter is not None or target is not None:
        check_models(drafter=drafter, target=target)
    typer.echo(f"Writing {output} ...")
    from ..hub.export import export_hub as export
    from .output.progress import waiting

    with waiting(f"Writing {output}"), on_interrupt(f"{output} was not written"):
        export(output, drafter, target)
    typer.echo(f"wrote {output}; upload it with: hf-failfast push USER/NAME {output}")


def push(
    repo_id: Annotated[str, typer.Argument(help="USER/NAME on the Hub; made if it is not there.")],
    folder: Annotated[Path, typer.Argument(help="Exported repository, or a drafter.")],
    private: Annotated[bool, typer.Option("--private", help="A repository that is made is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go; nothing is sent.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload an exported repository or a drafter to the Hub, in one commit."""
    if REPOSITORY.fullmatch(repo_id) is None:
        raise typer.BadParameter(f"{repo_id!r} is not USER/NAME, the name of a repository on the Hub.")
    from ..hub.push import plan, upload

    planned = plan(repo_id, folder)
    if not (dry_run or as_json):
        typer.echo(f"Uploading {len(planned.sizes)} files to {repo_id} ...")
    with on_interrupt(f"see whether {repo_id} has a new commit; an upload is one commit or none"):
        address = None if dry_run else upload(planned, private)
    if as_json:
        print(json.dumps({"repo_id": repo_id, "files": planned.sizes, "commit": address}))
        return
    for name, size in planned.sizes.items():
        typer.echo(f"{size:>14,}  {name}")
    sent = "would go to" if dry_run else "went to"
    typer.echo(f"{len(planned.sizes)} files, {sum(planned.sizes.values()):,} bytes {sent} {address or repo_id}")
