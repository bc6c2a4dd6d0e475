"""The `hf-failfast` command. Heavy imports are inside of the commands, so that `--help` is quick."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens per answer, at most.")]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs per prompt and method; the median counts.")]
Dtype = Annotated[str, typer.Option(help="torch dtype of both models, or auto for the target checkpoint's.")]
ConfidenceThreshold = Annotated[float | None, typer.Option(help="tau; by default the drafter's own.")]
ChunkLength = Annotated[int | None, typer.Option(help="N; by default the drafter's own.")]
MaxDraftLength = Annotated[int | None, typer.Option(help="N_max; by default the drafter's own.")]

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
    from .training.config import DataConfig, TrainingConfig
    from .training.run import Job, run

    if steps is None and minutes is None:
        minutes = 60
    if questions is None:
        questions = min(DataConfig.questions, max(64, (steps or DataConfig.questions) * batch_size))
    command = shlex.join(["hf-failfast", *sys.argv[1:]])
    job = Job(target, output, data or output / "data", licence, command, threads)
    with _errors_in_one_line():
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


@app.command()
def demo(
    max_new_tokens: MaxNewTokens = 96,
    repeats: Repeats = 3,
    dtype: Dtype = "bfloat16",
    confidence_threshold: ConfidenceThreshold = None,
    chunk_length: ChunkLength = None,
    max_draft_length: MaxDraftLength = None,
) -> None:
    """SmolLM2-135M-Instruct with the bundled drafter: a few answers, then the comparison with plain generate."""
    from . import BUNDLED_DRAFTER, load_drafter
    from .showcase import DEMO_PROMPTS, show
    from .smollm2 import load_smollm2

    _quiet()
    with _errors_in_one_line():
        target, tokenizer = load_smollm2(_torch_dtype(dtype))
        drafter = load_drafter(BUNDLED_DRAFTER, dtype=target.dtype, device_map=target.device)
        options = _options(confidence_threshold, chunk_length, max_draft_length)
        show(target, tokenizer, drafter, DEMO_PROMPTS, options, max_new_tokens, repeats)


@app.command()
def generate(
    target: Annotated[str, typer.Option(help="Folder or Hub name of the causal LM.")],
    drafter: Annotated[str, typer.Option(help="Folder or Hub name of its diffusion drafter.")],
    prompt: Annotated[list[str], typer.Option(help="What to answer; may be given several times.")],
    max_new_tokens: MaxNewTokens = 128,
    repeats: Repeats = 3,
    dtype: Dtype = "auto",
    device: Annotated[str, typer.Option(help="Where both models run.")] = "cpu",
    confidence_threshold: ConfidenceThreshold = None,
    chunk_length: ChunkLength = None,
    max_draft_length: MaxDraftLength = None,
) -> None:
    """Answer prompts with any target and drafter, then compare with plain generate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from . import load_drafter
    from .showcase import show

    _quiet()
    with _errors_in_one_line():
        model = AutoModelForCausalLM.from_pretrained(target, dtype=_torch_dtype(dtype)).to(device).eval()
        loaded = load_drafter(drafter, dtype=model.dtype, device_map=model.device)
        options = _options(confidence_threshold, chunk_length, max_draft_length)
        show(model, AutoTokenizer.from_pretrained(target), loaded, prompt, options, max_new_tokens, repeats)


@app.command()
def inspect(
    checkpoint: Annotated[str, typer.Argument(help="Folder or Hub name of a diffusion drafter.")],
    target: Annotated[str | None, typer.Option(help="Folder or Hub name of a target to draft for.")] = None,
    attention: Annotated[str | None, typer.Option(help="As for load_drafter, where the config does not say.")] = None,
    shift: Annotated[int | None, typer.Option(help="As for load_drafter.")] = None,
    mask_token_id: Annotated[int | None, typer.Option(help="As for load_drafter.")] = None,
    block_size: Annotated[int | None, typer.Option(help="As for load_drafter.")] = None,
) -> None:
    """Say what a drafter checkpoint is, and whether it fits a target. Reads headers, loads no weights."""
    from rich.console import Console
    from rich.table import Table

    from .drafters.inspection import inspect_checkpoint

    spec = {"attention": attention, "shift": shift, "mask_token_id": mask_token_id, "block_size": block_size}
    given: dict[str, Any] = {name: value for name, value in spec.items() if value is not None}
    _quiet()
    with _errors_in_one_line():
        found = inspect_checkpoint(checkpoint, target, **given)
    table = Table(show_header=False)
    for row in found.rows():
        table.add_row(*row)
    if target is not None:
        table.add_row(f"fits {target}", found.misfit or "yes")
    Console().print(table)
    raise typer.Exit(found.misfit is not None)


def _quiet() -> None:
    """The output is for reading: no progress bars and no hints of the libraries between the answers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _layers(text: str | None) -> tuple[int, ...] | None:
    """Layer numbers separated by commas; None for the default choice."""
    if text is None:
        return None
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ValueError(f"`layers` must be layer numbers separated by commas, such as 0,1,2,29, but is {text!r}.")
    return tuple(int(part) for part in text.split(","))


def _options(*values: float | int | None) -> dict[str, Any]:
    """The FailFast options that were given, by name; the drafter's own numbers stand for the others."""
    from .config import FailFastConfig

    given = zip(FailFastConfig.field_names(), values, strict=True)
    return {name: value for name, value in given if value is not None}


def _torch_dtype(name: str) -> Any:
    import torch

    dtype = getattr(torch, name, None)
    if name != "auto" and not isinstance(dtype, torch.dtype):
        raise typer.BadParameter(f"{name!r} is not a torch dtype; try float32 or bfloat16.", param_hint="--dtype")
    return dtype or name


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """What a user can mend ends the command with one line and exit code 1, without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"hf-failfast: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
