"""`hf-failfast train`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from .options import AsJson


def train(
    target: Annotated[str, typer.Option(help="Folder or Hub name of the causal LM to draft for.")],
    output: Annotated[Path, typer.Option(help="Folder of the drafter; a checkpoint in it is continued.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the answers.", show_default="OUTPUT/data")] = None,
    steps: Annotated[int | None, typer.Option(help="Training ends after this many steps.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Training ends after this many minutes.", show_default="60 without steps"),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="A .txt or .jsonl file, or a dataset's name.", show_default="the target's own questions"),
    ] = None,
    records: Annotated[str, typer.Option(help="What the source holds: prompts to answer, or texts.")] = "prompts",
    field: Annotated[str | None, typer.Option(help="Where a record's text is.", show_default="prompt or text")] = None,
    questions: Annotated[
        int | None, typer.Option(help="Prompts to answer.", show_default="enough for the steps, at most 2400")
    ] = None,
    answer_tokens: Annotated[int, typer.Option(help="Longest answer; texts are cut there.")] = 192,
    prompt_tokens: Annotated[int, typer.Option(help="Longer prompts are left out.")] = 512,
    sampled_answers: Annotated[int, typer.Option(help="Drawn answers per question beside the greedy one.")] = 0,
    answer_temperature: Annotated[float, typer.Option(help="Of the sampled answers.")] = 1.0,
    store_states: Annotated[bool, typer.Option(help="Keep the target's final hidden states with the data.")] = True,
    synthesis_batch_size: Annotated[int, typer.Option(help="Questions answered at once.")] = 128,
    attention: Annotated[str, typer.Option(help="causal_canvas or block_causal.")] = "causal_canvas",
    conditioned: Annotated[bool, typer.Option(help="Let the drafter read the target's hidden states.")] = False,
    layers: Annotated[
        str | None,
        typer.Option(help="Layers of the target, such as 0,1,2,29.", show_default="the first three and the last"),
    ] = None,
    intermediate_size: Annotated[
        int | None, typer.Option(help="MLP neurons kept in every layer.", show_default="all")
    ] = None,
    canvas_length: Annotated[int, typer.Option(help="Draft positions per pass; the block of block_causal.")] = 8,
    draft_vocabulary: Annotated[int, typer.Option(help="Ids the drafter can propose; 0 for all.")] = 8192,
    batch_size: Annotated[int, typer.Option(help="Sequences per process and micro-step.")] = 4,
    accumulation: Annotated[int, typer.Option(help="Micro-steps per optimizer step.")] = 1,
    anchors: Annotated[int, typer.Option(help="Canvases per sequence and step.")] = 24,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1.5e-3,
    ema_decay: Annotated[float, typer.Option(help="Of averaged weights; 0 for none.")] = 0.0,
    cross_entropy_weight: Annotated[float, typer.Option(help="Of the cross-entropy with the answers.")] = 0.3,
    position_decay: Annotated[float, typer.Option(help="g of the weights exp(-(k - 1) / g); 0 for equal ones.")] = 4.5,
    focal_weight: Annotated[float, typer.Option(help="Of the cross-entropy at the first wrong position.")] = 0.0,
    chain_weight: Annotated[float, typer.Option(help="Of the expected accepted length, greedy answers.")] = 0.0,
    streak_weight: Annotated[float, typer.Option(help="Of the expected accepted length, sampled answers.")] = 0.0,
    soft_label_weight: Annotated[float, typer.Option(help="Of the divergence from the target's top tokens.")] = 0.0,
    regression_weight: Annotated[float, typer.Option(help="Of the regression to the target's hidden states.")] = 1.0,
    initial: Annotated[
        Path | None, typer.Option(help="Folder of a drafter to start from.", show_default="the target's layers")
    ] = None,
    evaluation_steps: Annotated[int, typer.Option(help="Steps between evaluations and checkpoints.")] = 200,
    threads: Annotated[int | None, typer.Option(help="CPU threads of training.", show_default="torch's")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the target, for the model card.")] = "apache-2.0",
    seed: Annotated[int, typer.Option(help="Decides the data and the training.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a diffusion drafter for any causal LM on answers that the target writes itself.

    Several processes or GPUs: `torchrun --nproc_per_node N -m hf_failfast.cli.app train ...`.
    """
    from ..training.canvases import Attention
    from ..training.config import DataConfig, TrainingConfig
    from ..training.run import Job, run

    if steps is None and minutes is None:
        minutes = 60
    if questions is None:
        questions = min(DataConfig.questions, max(64, (steps or DataConfig.questions) * batch_size))
    command = shlex.join(["hf-failfast", *sys.argv[1:]])
    job = Job(target, output, data or output / "data", licence, command, threads)
    data_config = DataConfig(
        questions=questions,
        source=source,
        records=records,
        field=field,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        sampled_answers=sampled_answers,
        answer_temperature=answer_temperature,
        store_states=store_states,
        batch_size=synthesis_batch_size,
        seed=seed,
    )
    training_config = TrainingConfig(
        steps=steps,
        minutes=minutes,
        attention=cast(Attention, attention),  # checked by the config
        conditioned=conditioned,
        initial=None if initial is None else str(initial),
        layers=_layers(layers),
        intermediate_size=intermediate_size,
        canvas_length=canvas_length,
        draft_vocabulary=draft_vocabulary,
        batch_size=batch_size,
        accumulation=accumulation,
        anchors=anchors,
        learning_rate=learning_rate,
        ema_decay=ema_decay,
        cross_entropy_weight=cross_entropy_weight,
        position_decay=position_decay,
        focal_weight=focal_weight,
        chain_weight=chain_weight,
        streak_weight=streak_weight,
        soft_label_weight=soft_label_weight,
        regression_weight=regression_weight,
        evaluation_steps=evaluation_steps,
        seed=seed,
    )
    run(job, data_config, training_config, as_json)


def _layers(text: str | None) -> tuple[int, ...] | None:
    """Layer numbers separated by commas; None for the default choice."""
    if text is None:
        return None
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ValueError(f"`layers` must be layer numbers separated by commas, such as 0,1,2,29, but is {text!r}.")
    return tuple(int(part) for part in text.split(","))
