"""The whole of `hf-failfast train`: load the target, synthesise what is missing, train, export."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from .config import NATURAL, DataConfig, TrainingConfig
from .data.synthesis import load_data, synthesise
from .data.unseen import unseen_examples
from .data.words import wordnet_folder
from .dflash import check_norms
from .export import Provenance
from .lora import check_lora_target
from .model import check_inputs, check_target, default_layers
from .precision import training_dtype
from .trainer import Trainer, new_accelerator


@dataclass(frozen=True)
class Job:
    """Where everything is; `threads` bounds training, not synthesis; `licence` is the target's."""

    target: str
    output: Path
    data: Path
    licence: str
    command: str
    threads: int | None = None

    @property
    def target_name(self) -> str:
        """A Hub name as it is; of a longer path its last part."""
        path = Path(self.target)
        return self.target if len(path.parts) <= 2 and not path.is_absolute() else path.name


def run(job: Job, data_config: DataConfig, training_config: TrainingConfig, as_json: bool = False) -> None:
    """Continues whatever an earlier run left in the data and output folders. Of several processes the first
    synthesises. With `as_json` the last evaluation is printed as one JSON document, and nothing else."""
    console = Console(quiet=as_json)
    if any(part.origin == NATURAL for part in data_config.parts):
        wordnet_folder()  # raises before a model is loaded
    accelerator = new_accelerator()
    if AutoConfig.from_pretrained(job.target).is_encoder_decoder:
        raise ValueError(f"`target` must be a decoder-only causal LM, but {job.target} is an encoder-decoder.")
    dtype = training_dtype(accelerator.device)
    model = AutoModelForCausalLM.from_pretrained(job.target, dtype=dtype).to(accelerator.device).eval()
    if training_config.lora:
        check_lora_target(model)
    else:
        total = model.config.get_text_config(decoder=True).num_hidden_layers
        check_target(model, training_config.layers or default_layers(total, training_config.reads_states))
        (check_norms if training_config.form == "dflash" else check_inputs)(model)
    tokenizer = AutoTokenizer.from_pretrained(job.target)
    with accelerator.main_process_first():
        manifest = synthesise(model, tokenizer, data_config, job.data, job.target_name, console)
        unseen = unseen_examples(model, tokenizer, data_config, job.data, job.target_name)
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    data = load_data(job.data)
    console.print(f"{data.loops:.1%} of the answers' tokens are left out: they repeat themselves")
    provenance = Provenance(job.target_name, job.licence, job.command, manifest | {"loops": round(data.loops, 4)})
    trainer = Trainer(model, (data.training, data.held_out), training_config, job.output, provenance, unseen)
    del model  # the drafter keeps what it needs of it
    record = trainer.train(console)
    if accelerator.is_main_process:
        _show(job, record, console)
        if as_json:
            print(json.dumps({"output": str(job.output)} | record))


def _show(job: Job, record: dict[str, Any], console: Console) -> None:
    """What the run made, and how to try it."""
    if not record:
        console.print(f"{job.output}: nothing left to train", highlight=False)
    else:
        table = Table(show_header=False)
        table.add_row("drafter", str(job.output))
        table.add_row("trained", f"{record['step']} steps, {record['minutes']} minutes")
        if (decoding := record.get("decoding")) is not None:
            interval = f"{decoding['low']:.2f} to {decoding['high']:.2f}"
            found = f"{decoding['mean_acceptance_length']:.2f} tokens a round ({interval}), decoding unseen prompts"
        else:
            found = f"{record['held_out']['mean_acceptance_length']:.2f} tokens a draft, held-out answers"
        table.add_row("mean_acceptance_length", found)
        first = record["held_out"]["acceptance_by_position"][0]
        table.add_row("first draft token", f"accepted in {first:.0%} of held-out drafts")
        console.print(table)
    words = shlex.join(["--target", job.target, "--drafter", str(job.output)])
    console.print(f'try it with: hf-failfast generate {words} --prompt "..."', highlight=False, soft_wrap=True)
