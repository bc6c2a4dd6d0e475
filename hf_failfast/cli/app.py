"""The `hf-failfast` command: its parts, and how all of them end."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .adapt import adapt
from .bench import bench
from .calibrate import calibrate
from .doctor import doctor
from .experiment import experiment
from .generate import demo, generate
from .hub import export_hub, push
from .inspect import inspect
from .interrupts import Stopped
from .serve import PASSES_ON, export_vllm, serve
from .trace import trace
from .train import train


class Commands(TyperGroup):
    """Every command: an error ends it with one line and exit code 1; the traceback is for `--debug`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            typer.echo(f"hf-failfast: {stop if isinstance(stop, Stopped) else Stopped()}", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            is_typers_own = isinstance(error, typer.Abort) or hasattr(error, "exit_code")
            if is_typers_own or isinstance(error, BrokenPipeError) or ctx.params["debug"]:
                raise
            typer.echo(f"hf-failfast: {_in_words(error)}", err=True)
            raise typer.Exit(1) from None


def _in_words(error: Exception) -> str:
    """The message of what a user can mend; anything else with its kind, and how to see where it arose."""
    if isinstance(error, (ValueError, OSError, ImportError)):
        return str(error) + (_OFFLINE if _needs_the_hub(error) else "")
    return f"{type(error).__name__}: {error} (the traceback: hf-failfast --debug ...)"


_OFFLINE = "\nhuggingface_hub is offline (HF_HUB_OFFLINE=1): unset HF_HUB_OFFLINE to fetch from the Hub."


def _needs_the_hub(error: Exception) -> bool:
    from huggingface_hub import is_offline_mode

    return is_offline_mode() and "couldn't connect" in str(error)


def _version(is_wanted: bool) -> None:
    if is_wanted:
        from ..version import __version__

        typer.echo(__version__)
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,  # in rich's tables the names of options are cut at 80 columns
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Lossless speculative decoding with diffusion drafters."""


for command in (demo, generate, bench, doctor, trace, calibrate, experiment, train, adapt, inspect, export_hub, push):
    app.command()(command)
app.command()(export_vllm)
app.command(context_settings=PASSES_ON)(serve)


if __name__ == "__main__":
    app()
