"""The `hf-failfast` command. Heavy imports are inside of the commands, so that `--help` is quick."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Lossless speculative decoding with diffusion drafters."""


@app.command()
def train(
    target: Annotated[str, typer.Option(help="Folder or Hub name of the causal LM to draft for.")],
    output: Annotated[Path, typer.Option(help="Folder of the drafter; a checkpoint in it is continued.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the synthesised data.  [default: OUTPUT/data]")] = None,
    steps: Annotated[int | None, typer.Option(help="Training ends after this many steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Training ends after this many minutes.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers of the target, such as 0,1,2,29.")] = None,
    canvas_length: Annotated[int, typer.Option(help="Draft positions per pass.")] = 8,
    draft_vocabulary: Annotated[int, typer.Option(help="Ids the drafter can propose; 0 for all.")] = 8192,
    questions: Annotated[int, typer.Option(help="Questions to synthesise.")] = 2400,
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
    from hf_failfast.training.config import DataConfig, TrainingConfig
    from hf_failfast.training.run import Job, run

    data_config = DataConfig(
        questions=questions, answer_tokens=answer_tokens, batch_size=synthesis_batch_size, seed=seed
    )
    training_config = TrainingConfig(
        steps=steps,
        minutes=minutes,
        layers=tuple(int(layer) for layer in layers.split(",")) if layers else None,
        canvas_length=canvas_length,
        draft_vocabulary=draft_vocabulary,
        batch_size=batch_size,
        anchors=anchors,
        learning_rate=learning_rate,
        evaluation_steps=evaluation_steps,
        seed=seed,
    )
    command = shlex.join(["hf-failfast", *sys.argv[1:]])
    run(Job(target, output, data or output / "data", licence, command, threads), data_config, training_config)


if __name__ == "__main__":
    app()
