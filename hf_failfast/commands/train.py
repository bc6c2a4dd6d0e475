"""`hf-failfast train`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def train(
    target: Annotated[str, typer.Option(help="Folder or Hub name of the causal LM to draft for.")],
    output: Annotated[Path, typer.Option(help="Folder of the drafter; a checkpoint in it is continued.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the synthesised data.  [default: OUTPUT/data]")] = None,
    steps: Annotated[int | None, typer.Option(help="Training ends after this many steps.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Training ends after this many minutes.  [default: 60 if no steps are given]")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers of the target, such as 0,1,2,29.")] = None,
    canvas_length: Annotated[int, typer.Option(help="Draft positions per pass.")] = 8,
    draft_vocabulary: Annotated[int, typer.Option(help="Ids the drafter can propose; 0 for all.")] = 8192,
    questions: Annotated[
        int | None, typer.Option(help="Questions to synthesise.  [default: enough for the steps, at most 2400]")
    ] = None,
    answer_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 192,
    synthesis_batch_size: Annotated[int, typer.Option(help="Questions answered at once.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Sequences per training step.")] = 4,
    anchors: Annotated[int, typer.Option(help="Canvases per sequence and step.")] = 24,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1.5e-3,
    evaluation_steps: Annotated[int, typer.Option(help="Steps between evaluations and checkpoints.")] = 200,
    threads: Annotated[int | None, typer.Option(help="CPU threads of training.  [default: torch's]")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the target, for the model card.")] = "apache-2.0",
    seed: Annotated[int, typer.Option(help="Decides the data and the training.")] = 0,
) -> None:
    """Train a diffusion drafter for any causal LM on answers that the target writes itself."""
    from ..training.config import DataConfig, TrainingConfig
    from ..training.run import Job, run

    if steps is None and minutes is None:
        minutes = 60
    if questions is None:
        questions = min(DataConfig.questions, max(64, (steps or DataConfig.questions) * batch_size))
    command = shlex.join(["hf-failfast", *sys.argv[1:]])
    job = Job(target, output, data or output / "data", licence, command, threads)
    data_config = DataConfig(
        questions=questions, answer_tokens=answer_tokens, batch_size=synthesis_batch_size, seed=seed
    )
    training_config = TrainingConfig(
        steps=steps,
        minutes=minutes,
        layers=_layers(layers),
        canvas_length=canvas_length,
        draft_vocabulary=draft_vocabulary,
        batch_size=batch_size,
        anchors=anchors,
        learning_rate=learning_rate,
        evaluation_steps=evaluation_steps,
        seed=seed,
    )
    run(job, data_config, training_config)


def _layers(text: str | None) -> tuple[int, ...] | None:
    """Layer numbers separated by commas; None for the default choice."""
    if text is None:
        return None
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ValueError(f"`layers` must be layer numbers separated by commas, such as 0,1,2,29, but is {text!r}.")
    return tuple(int(part) for part in text.split(","))
