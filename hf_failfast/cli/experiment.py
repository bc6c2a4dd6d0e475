"""`hf-failfast experiment`."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..experiments import catalogue
from .checks import check_models, check_parents
from .extras import require
from .interrupts import on_interrupt
from .options import (
    AsJson,
    Device,
    Drafter,
    Dtype,
    MaxNewTokens,
    PromptsFile,
    Repeats,
    Target,
    Tasks,
    check_device,
    check_prompts_file,
    numbers,
    task_names,
    torch_dtype,
    with_failfast_options,
    with_old_name,
)
from .startup import begin

Name = StrEnum("Name", {name: name for name in catalogue.names()})  # type: ignore[misc]


@with_old_name("--out", "output")
@with_failfast_options()
def experiment(
    name: Annotated[Name, typer.Argument(metavar="NAME", help="Which; docs/experiments.md tells what each asks.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of NAME.json and NAME.svg.")] = Path(
        "experiments"
    ),
    target: Target = None,
    drafter: Drafter = None,
    assistant: Annotated[
        str | None,
        typer.Option(
            help="Autoregressive draft model of `baselines`.", show_default="the drafter, one token per pass"
        ),
    ] = None,
    tasks: Tasks = "failfast_offline",
    prompts: PromptsFile = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts per task.")] = 2,
    max_new_tokens: MaxNewTokens = 96,
    repeats: Repeats = 1,
    values: Annotated[
        str | None, typer.Option(help="What the axis takes, comma-separated.", show_default="paper's")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    target_latency_ms: Annotated[
        float | None, typer.Option(help="Of the modelled speedup.", show_default="measured")
    ] = None,
    drafter_latency_ms: Annotated[float | None, typer.Option(help="Of the modelled speedup; both or neither.")] = None,
    temperature: Annotated[float, typer.Option(help="0: greedy answers; above: sampled ones (0 or more).")] = 0.0,
    seed: Annotated[int, typer.Option(help="Decides the order of the runs.")] = 0,
    plot: Annotated[bool, typer.Option(help="Draw NAME.svg.")] = True,
    plot_only: Annotated[bool, typer.Option(help="Measure nothing: draw what NAME.json holds.")] = False,
    as_json: AsJson = False,
    *,
    options: dict[str, Any],
) -> None:
    """Repeat an experiment of the papers on any pair; SmolLM2 and its drafter unless others are named."""
    from ..experiments.plots import require_matplotlib, save_plot
    from ..experiments.tables import read, show, write
    from ..pairs import check_named_together

    if plot or plot_only:
        require_matplotlib()
    if not plot_only:
        _check(values, (target_latency_ms, drafter_latency_ms), temperature, prompts)
        require("eval", "lm_eval")
        check_named_together(target, drafter)
        check_models(target=target, drafter=drafter, assistant=assistant)
        check_parents([output / f"{name}.json"])
        begin(f"Measuring the experiment {name}, for minutes")
        from ..experiments.run import SetupOptions, measure
        from .output.progress import progress_bar

        check_device(device)
    chosen = catalogue.load(name)
    if not plot_only:
        setup = SetupOptions(
            target=target,
            drafter=drafter,
            assistant=assistant,
            tasks=task_names(tasks, prompts),
            prompts_file=prompts,
            limit=limit,
            max_new_tokens=max_new_tokens,
            repeats=repeats,
            values=numbers(values) or (),
            dtype=torch_dtype(dtype),
            device=device,
            options=options,
            latencies=(target_latency_ms, drafter_latency_ms),
            temperature=temperature,
            seed=seed,
        )
        with on_interrupt(f"{name}.json is as it was"), progress_bar() as on_progress:
            document = measure(name, chosen, setup, lambda done: on_progress(name, done))
        write(output / f"{name}.json", document)
    document = read(output / f"{name}.json")
    show(chosen.columns, document, as_json)
    if plot or plot_only:
        save_plot(chosen.plot, document, output / f"{name}.svg")


def _check(
    values: str | None, latencies: tuple[float | None, float | None], temperature: float, prompts: str | None
) -> None:
    """Raises BadParameter on what `SetupOptions` would refuse after torch is imported."""
    numbers(values)
    if (latencies[0] is None) != (latencies[1] is None):
        raise typer.BadParameter("`target_latency_ms` and `drafter_latency_ms` must be given together.")
    if not 0 <= temperature < math.inf:
        raise typer.BadParameter(f"`temperature` must be a number >= 0, but is {temperature!r}.")
    check_prompts_file(prompts)
