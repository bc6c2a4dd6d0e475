"""What a drafter is worth after equal training time, in decoding of prompts that no training saw.

    python benchmarks/equal_time.py --data DATA --minutes 6 --seeds 2 --output results/ablation_equal_time.json

DATA is the data folder of `hf-failfast train` for SmolLM2-135M-Instruct. Time is this process's processor time on one
thread, evaluation left out, so that other work on the machine changes little. All variants draft 8 tokens a pass from
8,192 ids. A variant and seed that the output file already holds is not run again.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers.utils import logging

from hf_failfast.measure.provenance import provenance
from hf_failfast.pairs import SMOLLM2, load_smollm2
from hf_failfast.training.config import DataConfig, TrainingConfig
from hf_failfast.training.data.synthesis import load_examples
from hf_failfast.training.data.unseen import unseen_examples
from hf_failfast.training.export import Provenance
from hf_failfast.training.trainer import Trainer

VARIANTS: dict[str, dict[str, Any]] = {
    "standalone": {},
    "conditioned": {"conditioned": True},
    "DFlash": {"form": "dflash", "layout": "speculators"},
    "soft labels": {"soft_label_weight": 0.3, "cross_entropy_weight": 0.0},
    "cross-entropy and soft labels": {"soft_label_weight": 0.3},
}


def trained(trainer: Trainer) -> dict[str, Any]:
    """The evaluation after the configured minutes of processor time."""
    while trainer.progress() < 1:
        started = time.process_time()
        trainer.train_step()
        trainer.seconds += time.process_time() - started
    return trainer.evaluate()


def main(
    data: Annotated[Path, typer.Option(help="Data folder of `hf-failfast train`.")],
    output: Annotated[Path, typer.Option(help="JSON file; finished runs in it are kept.")],
    minutes: float = 6,
    seeds: int = 1,
    variants: Annotated[str | None, typer.Option(help="Names, separated by semicolons.  [default: all]")] = None,
    learning_rate: float = 1.5e-3,
    anchors: int = 24,
    held_out: Annotated[int, typer.Option(help="Held-out answers, at most.")] = 24,
    every: Annotated[int, typer.Option(help="The unseen prompts, each n-th of them.")] = 1,
) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    examples, aside = load_examples(data)
    document = json.loads(output.read_text()) if output.exists() else {"runs": []}
    for seed in range(seeds):
        for name in variants.split(";") if variants else list(VARIANTS):
            if any((run["variant"], run["seed"]) == (name, seed) for run in document["runs"]):
                continue
            config = TrainingConfig(
                minutes=minutes,
                learning_rate=learning_rate,
                warmup_steps=15,
                anchors=anchors,
                seed=seed,
                **VARIANTS[name],
            )
            target, tokenizer = load_smollm2(torch.bfloat16)
            unseen = unseen_examples(target, tokenizer, DataConfig(), data, SMOLLM2)[::every]
            with tempfile.TemporaryDirectory() as folder:
                place = Provenance(SMOLLM2, "apache-2.0", "", {"settings": {"source": ""}, "shards": []})
                trainer = Trainer(target, (examples, aside[:held_out]), config, Path(folder), place, unseen)
                record = trained(trainer)
            keys = ("mean_acceptance_length", "low", "high", "acceptance_by_position")
            figures = {key: record["decoding"][key] for key in keys}
            run = {"variant": name, "seed": seed, "steps": record["step"], "decoding": figures}
            document["runs"].append(run | {"held_out": record["held_out"]["mean_acceptance_length"]})
            settings = {"minutes": minutes, "learning_rate": learning_rate, "anchors": anchors, "prompts": len(unseen)}
            document |= {**settings, "training_answers": len(examples), **provenance()}
            output.write_text(json.dumps(document, indent=1) + "\n")
            print(json.dumps(document["runs"][-1]), flush=True)


if __name__ == "__main__":
    typer.run(main)
