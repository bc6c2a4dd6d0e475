"""What a drafter is worth after equal training time, in decoding of prompts that no training saw.

    python benchmarks/equal_time.py --data DATA --minutes 6 --seeds 2 --output results/ablation_equal_time.json

DATA is the data folder of `hf-failfast train` for SmolLM2-135M-Instruct. Time is this process's processor time on one
thread, evaluation left out, so that other work on the machine changes little. All variants draft 8 tokens a pass from
8,192 ids, but for the autoregressive one: its drafts are 8 passes, from all ids, as transformers has them. A variant
and seed that the output file already holds is not run again.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from trainers import AdafactorTrainer, AutoregressiveTrainer, MuonTrainer, OnPolicyTrainer
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_failfast.measure.provenance import provenance
from hf_failfast.pairs import SMOLLM2, load_smollm2
from hf_failfast.training.config import DataConfig, TrainingConfig
from hf_failfast.training.data.shards import Example
from hf_failfast.training.data.synthesis import load_examples
from hf_failfast.training.data.unseen import unseen_examples
from hf_failfast.training.export import Provenance, export
from hf_failfast.training.precision import training_dtype
from hf_failfast.training.trainer import Trainer

# The trainer, and the settings that differ from the defaults of `hf-failfast train`.
VARIANTS: dict[str, tuple[type[Trainer], dict[str, Any]]] = {
    "standalone": (Trainer, {}),
    "autoregressive": (AutoregressiveTrainer, {"draft_vocabulary": 0}),
    "conditioned": (Trainer, {"conditioned": True}),
    "DFlash": (Trainer, {"form": "dflash", "layout": "speculators"}),
    "8-bit AdamW": (Trainer, {"optimizer": "adamw8bit"}),
    "on-policy last third": (OnPolicyTrainer, {}),
    "Muon": (MuonTrainer, {}),
    "soft labels": (Trainer, {"soft_label_weight": 0.3, "cross_entropy_weight": 0.0}),
    "D-PACE": (Trainer, {"reach_alpha": 0.5}),
    "chain loss": (Trainer, {"chain_weight": 0.3}),
    "Adafactor": (AdafactorTrainer, {"learning_rate": 0.01}),
    "cross-entropy and soft labels": (Trainer, {"soft_label_weight": 0.3}),
}
PLACE = Provenance(SMOLLM2, "apache-2.0", "", {"settings": {"source": ""}, "shards": []})


def run(
    name: str,
    target: PreTrainedModel,
    data: tuple[list[Example], list[Example]],
    unseen: list[Example],
    settings: dict[str, Any],
    keep: Path | None,
) -> dict[str, Any]:
    """One variant's figures after the `minutes` of the settings. keep: a folder for the drafter."""
    kind, fields = VARIANTS[name]
    config = TrainingConfig(**settings | fields)
    with tempfile.TemporaryDirectory() as folder:
        trainer = kind(target, data, config, keep or Path(folder), PLACE, unseen)
        record = trained(trainer)
        if keep is not None:
            export(keep, trainer.drafter, config, PLACE, record)
    keys = ("mean_acceptance_length", "low", "high", "acceptance_by_position")
    figures = {key: record["decoding"][key] for key in keys}
    held_out = record["held_out"]["mean_acceptance_length"]
    return {"variant": name, "seed": config.seed, "steps": record["step"], "decoding": figures, "held_out": held_out}


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
    keep: Annotated[Path | None, typer.Option(help="Folder for the drafters of the first seed.")] = None,
) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    examples, aside = load_examples(data)
    document = json.loads(output.read_text()) if output.exists() else {"runs": []}
    for seed in range(seeds):
        for name in variants.split(";") if variants else list(VARIANTS):
            if any((each["variant"], each["seed"]) == (name, seed) for each in document["runs"]):
                continue
            target, tokenizer = load_smollm2(training_dtype(torch.device("cpu")))
            unseen = unseen_examples(target, tokenizer, DataConfig(), data, SMOLLM2)[::every]
            settings = {"minutes": minutes, "learning_rate": learning_rate, "anchors": anchors}
            own = settings | {"warmup_steps": 15, "seed": seed}
            kept = keep / name if keep and seed == 0 else None
            document["runs"].append(run(name, target, (examples, aside[:held_out]), unseen, own, kept))
            document |= settings | {"prompts": len(unseen), "training_answers": len(examples), **provenance()}
            output.write_text(json.dumps(document, indent=1) + "\n")
            print(json.dumps(document["runs"][-1]), flush=True)


if __name__ == "__main__":
    typer.run(main)
