"""The training loop: steps, held-out evaluation, checkpoints; a resumed run repeats a straight one bit for bit."""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm
from transformers import PreTrainedModel

from .batches import (
    batch_indices,
    collate,
    draft_index,
    even_anchors,
    random_anchors,
    step_generator,
    to_device,
)
from .config import TrainingConfig
from .data import Example
from .export import Provenance, export, versions
from .model import CanvasDrafter, frequent_tokens
from .objective import acceptance, held_out_matches, training_loss

CHECKPOINT = "checkpoint.pt"
LOG = "train_log.jsonl"
# A run may be given more time or steps when it is resumed; everything else decides what the weights become.
RESUMABLE = ("steps", "minutes")


def learning_rate_factor(step: int, progress: float, warmup_steps: int) -> float:
    """Linear warm-up over `warmup_steps`, times a cosine from 1 at progress 0 to 0 at progress 1."""
    warmup = min(1.0, (step + 1) / max(warmup_steps, 1))
    return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def default_layers(total: int) -> tuple[int, ...]:
    """The first three and the last: this starts better than evenly spaced layers."""
    return tuple(sorted({*range(min(3, total)), total - 1}))


class Trainer:
    """Owns the drafter, its optimizer and the output folder."""

    def __init__(
        self,
        target: PreTrainedModel,
        data: tuple[Sequence[Example], Sequence[Example]],
        config: TrainingConfig,
        output: Path,
        provenance: Provenance,
    ) -> None:
        self.examples, self.held_out = data
        if not self.examples or not self.held_out:
            counts = f"{len(self.examples)} and {len(self.held_out)}"
            raise ValueError(f"`data` must hold training and held-out questions, at least 1 of each, got {counts}.")
        self.lengths = [len(example.tokens) for example in self.examples]
        self.config, self.output, self.provenance = config, output, provenance
        self.device = target.device
        vocabulary = target.get_input_embeddings().weight.shape[0]
        output.mkdir(parents=True, exist_ok=True)
        checkpoint = self._checkpoint()
        # A run that is resumed with more data keeps its vocabulary.
        draft_vocabulary = checkpoint["draft_vocabulary"] if checkpoint else self._draft_vocabulary(target, vocabulary)
        self.draft_index = draft_index(draft_vocabulary, vocabulary)
        layers = config.layers or default_layers(target.config.num_hidden_layers)
        self.drafter = CanvasDrafter(target, layers, draft_vocabulary).to(self.device).eval()
        self.parameters = [p for p in self.drafter.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.95), weight_decay=0.0)
        self.step, self.seconds = 0, 0.0
        if checkpoint:
            self._resume(checkpoint)

    def _draft_vocabulary(self, target: PreTrainedModel, vocabulary: int) -> torch.Tensor | None:
        size = self.config.draft_vocabulary
        if size == 0 or size >= vocabulary:
            return None
        eos = target.generation_config.eos_token_id
        always = [eos] if isinstance(eos, int) else list(eos or [])
        return frequent_tokens([e.tokens[e.prompt_length :] for e in self.examples], size, always)

    def train(self, console: Console | None = None) -> dict[str, Any]:
        """Runs to the end of `steps` or `minutes`; returns the last evaluation's record, empty if none was left."""
        record: dict[str, Any] = {}
        with tqdm(total=self.config.steps, initial=self.step, unit="step", disable=console is None) as bar:
            while self.progress() < 1:
                started = time.monotonic()
                parts = self.train_step()
                seconds = time.monotonic() - started
                self.seconds += seconds
                bar.update()
                bar.set_postfix(self._status(parts, seconds), refresh=False)
                if self.step % self.config.evaluation_steps == 0 or self.progress() >= 1:
                    record = self.evaluate(parts)
                    self.save(record)
                    if console is not None:
                        tqdm.write(json.dumps(record["held_out"]))
        return record

    def _status(self, parts: dict[str, float], seconds: float) -> dict[str, str]:
        """What the progress line shows after one step of `seconds`."""
        left = self.seconds * (1 / self.progress() - 1) / 60
        losses = {name: f"{value:.2f}" for name, value in parts.items() if name != "tokens"}
        return {"left": f"{left:.1f}min", "tokens/s": f"{parts['tokens'] / seconds:.0f}", **losses}

    def progress(self) -> float:
        """Share of the steps or of the minutes that is used up, whichever is further."""
        steps = self.step / self.config.steps if self.config.steps else 0.0
        minutes = self.seconds / 60 / self.config.minutes if self.config.minutes else 0.0
        return max(steps, minutes)

    def train_step(self) -> dict[str, float]:
        """One optimizer step; its loss parts and the number of clean tokens it saw."""
        config = self.config
        generator = step_generator(config.seed, self.step, 1)
        indices = batch_indices(self.lengths, config.batch_size, config.seed, self.step)
        chosen = [self.examples[i] for i in indices]
        anchors = random_anchors(chosen, config.anchors, generator)
        batch = to_device(collate(chosen, anchors, config.canvas_length, self.draft_index), self.device)
        factor = learning_rate_factor(self.step, self.progress(), config.warmup_steps)
        self.optimizer.param_groups[0]["lr"] = config.learning_rate * factor
        with torch.autocast(self.device.type, torch.bfloat16):
            parts = training_loss(self.drafter, batch, config, generator)
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        tokens = sum(self.lengths[i] for i in indices)
        return {**{name: value.item() for name, value in parts.items()}, "tokens": tokens}

    def evaluate(self, parts: dict[str, float]) -> dict[str, Any]:
        """Held-out acceptance on fixed anchors, with everything training.json keeps."""
        matches = []
        size = self.config.batch_size
        for start in range(0, len(self.held_out), size):
            chosen = self.held_out[start : start + size]
            anchors = even_anchors(chosen, self.config.held_out_anchors, self.config.canvas_length)
            batch = to_device(collate(chosen, anchors, self.config.canvas_length, self.draft_index), self.device)
            with torch.autocast(self.device.type, torch.bfloat16):
                matches.append(held_out_matches(self.drafter, batch).cpu())
        return {
            "step": self.step,
            "minutes": round(self.seconds / 60, 2),
            "held_out": acceptance(torch.cat(matches)),
            "last_batch": {name: round(value, 4) for name, value in parts.items()},
            "source_layers": list(self.drafter.source_layers),
            "target": self.provenance.target,
            "command": self.provenance.command,
            "config": dataclasses.asdict(self.config),
            "data": self.provenance.data,
            "versions": versions(),
        }

    def save(self, record: dict[str, Any]) -> None:
        """Exports the drafter, then the checkpoint, then one line of the log; each replaces the older one at once."""
        export(self.output, self.drafter, self.config.canvas_length, self.provenance, record)
        state = {
            "config": dataclasses.asdict(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "draft_vocabulary": self.drafter.draft_vocabulary,
            "parameters": [p.detach() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.output / (CHECKPOINT + ".partial")
        torch.save(state, partial)
        partial.rename(self.output / CHECKPOINT)
        line = {name: record[name] for name in ("step", "minutes", "held_out", "last_batch")}
        line["questions"] = len(self.examples)
        with (self.output / LOG).open("a") as log:
            log.write(json.dumps(line) + "\n")

    def _checkpoint(self) -> dict[str, Any] | None:
        """The folder's checkpoint, if it has one; ValueError where it was made with other settings."""
        path = self.output / CHECKPOINT
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu")
        for name, value in dataclasses.asdict(self.config).items():
            if name not in RESUMABLE and state["config"][name] != value:
                raise ValueError(f"`{name}` must be {state['config'][name]!r} as in {path}, got {value!r}.")
        return state

    def _resume(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
