"""Which losses and which kind of drafter train best: every variant from the same start, on the same data, for the
same number of steps.

    python benchmarks/ablation.py --data DATA --steps 100 --seeds 1 --output results/ablation.json

DATA is the data folder of `hf-failfast train` for SmolLM2-135M-Instruct; the streak variant also needs a folder with
sampled answers. With --initial variants start from a trained drafter (the bundled one, say) instead of the target's
own layers. A variant and seed that the output file already holds is not run again.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from trainers import AutoregressiveTrainer, MuonTrainer
from transformers.utils import logging

from hf_failfast.measure.provenance import provenance
from hf_failfast.pairs import load_smollm2
from hf_failfast.training.config import LOSS_WEIGHTS, TrainingConfig
from hf_failfast.training.data.shards import Example
from hf_failfast.training.data.synthesis import load_examples
from hf_failfast.training.export import Provenance
from hf_failfast.training.precision import training_dtype
from hf_failfast.training.report import LOG
from hf_failfast.training.trainer import Trainer

UNIFORM = dict.fromkeys(LOSS_WEIGHTS, 0.0) | {"cross_entropy_weight": 1.0, "position_decay": 0.0}
DECAY = UNIFORM | {"position_decay": 4.5}
REGRESSION: dict[str, Any] = {}  # the defaults: regression and cross-entropy
VARIANTS: dict[str, dict[str, Any]] = {
    "uniform cross-entropy": UNIFORM,
    "+ position decay": DECAY,
    "+ decay + focal": DECAY | {"focal_weight": 0.3},
    "+ decay + chain": DECAY | {"chain_weight": 1.0},
    "+ decay + streak": DECAY | {"streak_weight": 1.0},
    "+ decay + focal + chain": DECAY | {"focal_weight": 0.3, "chain_weight": 1.0},
    "soft labels": UNIFORM | {"cross_entropy_weight": 0.0, "soft_label_weight": 1.0, "position_decay": 4.5},
    "regression + cross-entropy": REGRESSION,
    "conditioned": REGRESSION | {"conditioned": True},
    "full vocabulary": REGRESSION | {"draft_vocabulary": 0},
    "block-causal": REGRESSION | {"attention": "block_causal"},
    "autoregressive": REGRESSION,
    "Muon": REGRESSION,
}
TRAINERS: dict[str, type[Trainer]] = {"autoregressive": AutoregressiveTrainer, "Muon": MuonTrainer}
FIXED_SHAPE = {"conditioned", "full vocabulary", "block-causal", "autoregressive"}  # cannot start from a drafter


def cut(examples: list[Example], answer_tokens: int) -> list[Example]:
    """The examples with shorter answers: steps cost less."""
    return [
        dataclasses.replace(
            example,
            tokens=example.tokens[: example.prompt_length + answer_tokens],
            hidden=None if example.hidden is None else example.hidden[:answer_tokens],
        )
        for example in examples
    ]


Sides = tuple[list[Example], list[Example]]


def run_variant(name: str, config: TrainingConfig, data: Sides, output: Path | None = None) -> dict[str, Any]:
    """Trains one variant; its held-out figures before and after."""
    target, _ = load_smollm2(training_dtype(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as folder:
        place = Provenance("SmolLM2-135M-Instruct", "apache-2.0", "", {"settings": {"source": ""}, "shards": []})
        trainer = TRAINERS.get(name, Trainer)(target, data, config, output or Path(folder), place)
        after = trainer.train()
        before = json.loads((trainer.output / LOG).read_text().splitlines()[0])
    figures = {key: after["held_out"][key] for key in ("mean_acceptance_length", "acceptance_by_position", "drafts")}
    start = before["held_out"]["mean_acceptance_length"]
    return {"variant": name, "seed": config.seed, "start": start, **figures, "minutes": after["minutes"]}


def main(
    data: Annotated[Path, typer.Option(help="Data folder of `hf-failfast train`.")],
    output: Annotated[Path, typer.Option(help="JSON file; finished runs in it are kept.")],
    steps: int = 100,
    seeds: int = 1,
    variants: Annotated[str | None, typer.Option(help="Names, separated by semicolons.  [default: all]")] = None,
    sampled: Annotated[Path | None, typer.Option(help="Data folder with sampled answers, for streak.")] = None,
    initial: Annotated[Path | None, typer.Option(help="Folder of a drafter that variants start from.")] = None,
    learning_rate: float = 5e-4,
    anchors: int = 24,
    answer_tokens: Annotated[int, typer.Option(help="Answers are cut there.")] = 192,
    held_out: Annotated[int, typer.Option(help="Held-out answers, at most.")] = 1000,
    held_out_anchors: int = 8,
    threads: int = 1,
) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    greedy = [cut(side, answer_tokens) for side in load_examples(data)]
    drawn = [example for example in load_examples(sampled)[0] if example.sampled] if sampled else []
    drawn = cut(drawn, answer_tokens)
    document = json.loads(output.read_text()) if output.exists() else {"runs": []}
    names = variants.split(";") if variants else list(VARIANTS)
    for seed in range(seeds):
        for name in names:
            if any((run["variant"], run["seed"]) == (name, seed) for run in document["runs"]):
                continue
            if initial and name in FIXED_SHAPE:
                continue
            config = TrainingConfig(
                steps=steps,
                learning_rate=learning_rate,
                warmup_steps=min(30, steps // 4),
                anchors=anchors,
                held_out_anchors=held_out_anchors,
                evaluation_steps=steps,
                initial=str(initial) if initial else None,
                seed=seed,
                **VARIANTS[name],
            )
            examples = (greedy[0] + (drawn if config.streak_weight else []), greedy[1][:held_out])
            document["runs"].append(run_variant(name, config, examples))
            settings = {
                "steps": steps,
                "learning_rate": learning_rate,
                "anchors": anchors,
                "answer_tokens": answer_tokens,
            }
            document |= {**settings, "initial": initial and initial.name, **provenance()}
            output.write_text(json.dumps(document, indent=2) + "\n")
            print(json.dumps(document["runs"][-1]), flush=True)


if __name__ == "__main__":
    typer.run(main)
