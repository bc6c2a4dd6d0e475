"""`hf-failfast calibrate`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .checks import check_models
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
    task_names,
    torch_dtype,
)
from .startup import begin

if TYPE_CHECKING:
    from ..experiments.calibration import Confirmation


def calibrate(
    target: Target = None,
    drafter: Drafter = None,
    tasks: Tasks = "failfast_offline",
    prompts: PromptsFile = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Prompts per task to choose on, and as many others to confirm.")
    ] = 2,
    max_new_tokens: MaxNewTokens = 96,
    repeats: Repeats = 1,
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=0.999, help="How far below the best speedup the plateau reaches, as a share.")
    ] = 0.03,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    save: Annotated[
        bool, typer.Option("--save", help="Write the numbers into the config of the drafter's folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the tau, N and N_max that are fastest for a pair on this machine, and how much they matter."""
    from dataclasses import asdict

    from ..pairs import check_named_together

    if save and (drafter is None or not (Path(drafter) / "config.json").is_file()):
        raise ValueError("`--save` needs `--drafter` with a drafter's folder, whose config.json it changes.")
    require("eval", "lm_eval")
    check_prompts_file(prompts)
    check_named_together(target, drafter)
    check_models(target=target, drafter=drafter)
    begin("Timing settings of tau, N and N_max one after the other, for minutes")
    from ..experiments.calibration import COLUMNS
    from ..experiments.run import SetupOptions, calibrated
    from ..experiments.tables import print_rows
    from .output.progress import progress_bar

    check_device(device)
    setup = SetupOptions(
        target=target,
        drafter=drafter,
        tasks=task_names(tasks, prompts),
        prompts_file=prompts,
        limit=limit,
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        dtype=torch_dtype(dtype),
        device=device,
    )
    with on_interrupt("no setting was changed"), progress_bar() as on_progress:
        found, confirmation, document = calibrated(setup, tolerance, lambda done: on_progress("calibrate", done))
    if save:
        _save(Path(str(drafter)) / "config.json", asdict(confirmation.recommended))
    if as_json:
        print(json.dumps(document))
        return
    print_rows(COLUMNS, found.plateau, f"within {tolerance:.0%} of the best, of {len(found.rows)} settings")
    print_rows(COLUMNS, document["held_out"], "on prompts that were not used to choose")
    print(_verdict(confirmation))
    best = confirmation.recommended
    numbers = ("confidence_threshold", "chunk_length", "max_draft_length")
    print(f"FailFastConfig({', '.join(f'{name}={getattr(best, name)}' for name in numbers)})")


def _verdict(confirmation: "Confirmation") -> str:
    over = confirmation.over_start
    if over is None:
        return "Keep what you have: nothing that was tried is faster."
    measured = (
        f"{over.speedup:.2f}x the start's speed, 95 % interval {over.speedup_low:.2f} to {over.speedup_high:.2f}"
    )
    if confirmation.is_faster:
        return f"The fastest setting has {measured}, on prompts that it was not chosen on:"
    return f"Keep what you have: on other prompts the fastest setting has {measured}, which is within noise or below."


def _save(path: Path, numbers: dict[str, Any]) -> None:
    """The chunk rule's numbers in the config's section of the drafter, everything else as it was."""
    from ..drafters.spec import SECTION, DrafterSection

    config = json.loads(path.read_text(encoding="utf-8"))
    section = DrafterSection.of(config.get(SECTION, {}))
    config[SECTION] = replace(section, options={**section.options, **numbers}).content()
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
