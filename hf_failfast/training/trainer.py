"""The training loop: steps, held-out evaluation, checkpoints; a resumed run repeats a straight one bit for bit."""

import dataclasses
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast
from rich.console import Console
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..drafters.checkpoints.reading import read_checkpoint
from ..drafters.spec import OWN_WINDOW
from .atomic_files import replacing
from .averaging import WeightAverage, copy_tensors
from .batches import Batch, CanvasPlan, aligned, batch_indices, draft_index, step_generator
from .canvases import Canvases
from .config import TrainingConfig
from .data.shards import Example
from .decoding import Decoded, answers_of, decoding_figures
from .dflash import BlockDrafter, rarest_token, stored_vocabulary
from .export import WEIGHTS, Provenance, export, versions
from .lora import LoraCanvas, Trainable
from .model import CanvasDrafter, covered_share, covering_size, default_layers, frequent_tokens
from .objective import HeldOut, held_out_drafts, training_loss
from .optimizers import compact, new_optimizer, round_at_random
from .precision import training_dtype
from .progress import Progress, deferred_interrupt
from .report import LOG, write_report
from .teacher import Teacher

CHECKPOINT = "checkpoint.pt"
# A run may be given more time or steps when it is resumed; everything else decides what the weights become.
RESUMABLE = ("steps", "minutes")
CONDITIONED_ONLY = ("input_fusion", "extended")
LORA_ONLY = ("lora_rank",)
BEFORE = {
    "input_fusion": False,
    "extended": 0.0,
    "coverage": None,
    "reach_alpha": None,
    "form": "canvas",
    "layout": "z-lab",
    "lora": False,
    "drafter_window": OWN_WINDOW,  # their drafters have it all the same
    "optimizer": "adamw",
}  # of checkpoints that do not say
PATIENCE = timedelta(days=2)  # while the first process synthesises, the others wait


def learning_rate_factor(step: int, progress: float, warmup_steps: int) -> float:
    """Linear warm-up over `warmup_steps`, times a cosine from 1 at progress 0 to 0 at progress 1."""
    warmup = min(1.0, (step + 1) / max(warmup_steps, 1))
    return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def new_accelerator(device: torch.device | None = None) -> Accelerator:
    """Autocast to `training_dtype` on whatever device or processes `accelerate launch` gives."""
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=PATIENCE)]
    cpu = device.type == "cpu" if device else not torch.accelerator.is_available()
    is_half = not cpu or training_dtype(torch.device("cpu")) == torch.bfloat16
    return Accelerator(mixed_precision="bf16" if is_half else "no", cpu=cpu, kwargs_handlers=handlers)


class Trainer:
    """Trains a drafter, and keeps the output folder."""

    def __init__(
        self,
        target: PreTrainedModel,
        data: tuple[Sequence[Example], Sequence[Example]],
        config: TrainingConfig,
        output: Path,
        provenance: Provenance,
        unseen: Sequence[Example] = (),
    ) -> None:
        """data: training and held-out examples. unseen: answers to prompts that training never sees, to measure
        decoding on; without them it is not measured."""
        self.accelerator = new_accelerator(target.device)
        self.examples, self.held_out = data
        self.unseen = unseen
        self.config, self.output, self.provenance = config, output, provenance
        self._check_data()
        self.lengths = [len(example.tokens) for example in self.examples]
        extended = config.extended if config.conditioned else 0.0
        self.plan = CanvasPlan(config.canvas_attention, config.canvas_length, config.anchors, extended, config.window)
        vocabulary = target.get_input_embeddings().weight.shape[0]
        output.mkdir(parents=True, exist_ok=True)
        checkpoint = self._checkpoint()
        drafter = self._new_lora(target) if config.lora else self._new_drafter(target, checkpoint)
        self.draft_index = draft_index(drafter.draft_vocabulary, vocabulary).to(self.accelerator.device)
        self.drafter: Trainable = drafter.to(self.accelerator.device).eval()
        self.teacher = self._teacher(target)
        self.parameters = [p for p in self.drafter.parameters() if p.requires_grad]
        self.average = WeightAverage(self.parameters, config.ema_decay)
        self.optimizer = new_optimizer(config.optimizer, self.parameters)
        self.step, self.seconds = 0, 0.0
        self.losses: Counter[str] = Counter()  # sums since the last evaluation
        if checkpoint:
            self._resume(checkpoint)
        self.model = self.accelerator.prepare_model(self.drafter)

    def _new_drafter(self, target: PreTrainedModel, checkpoint: dict[str, Any] | None) -> CanvasDrafter | BlockDrafter:
        """A run that is resumed with more data keeps its vocabulary and its mask."""
        config = self.config
        initial = load_file(Path(config.initial) / WEIGHTS) if config.initial else {}
        if checkpoint:
            draft_vocabulary = checkpoint.get("draft_vocabulary")
        elif initial and not config.has_whole_head:
            draft_vocabulary = stored_vocabulary(initial)
        else:
            draft_vocabulary = self._draft_vocabulary(target, target.get_input_embeddings().weight.shape[0])
        total = target.config.get_text_config(decoder=True).num_hidden_layers
        layers = config.layers or default_layers(total, config.reads_states)
        drafter: CanvasDrafter | BlockDrafter
        if config.form == "dflash":
            mask = checkpoint["mask_token_id"] if checkpoint else self._mask_token(target)
            drafter = BlockDrafter(target, layers, mask, draft_vocabulary, config.intermediate_size)
        else:
            fusion = config.conditioned and config.input_fusion
            drafter = CanvasDrafter(target, layers, draft_vocabulary, config.intermediate_size, fusion)
        if initial:
            drafter.load_stored_state(initial)
        return drafter

    def _new_lora(self, target: PreTrainedModel) -> LoraCanvas:
        drafter = LoraCanvas(target, self.config.lora_rank)
        if self.config.initial:
            drafter.start_from(Path(self.config.initial))
        return drafter

    def _check_data(self) -> None:
        if not self.examples or not self.held_out:
            counts = f"{len(self.examples)} and {len(self.held_out)}"
            raise ValueError(f"`data` must hold training and held-out questions, at least 1 of each, got {counts}.")
        if self.config.batch_size * self._batches_per_step > len(self.examples):
            raise ValueError(
                f"`batch_size` times `accumulation` times processes must be at most {len(self.examples)}, the "
                f"training questions, got {self.config.batch_size * self._batches_per_step}."
            )
        if self.config.streak_weight and not any(example.sampled for example in self.examples):
            raise ValueError("`streak_weight` needs sampled answers (`sampled_answers` of the data), got none.")

    @property
    def _batches_per_step(self) -> int:
        return self.config.accumulation * self.accelerator.num_processes

    def _mask_token(self, target: PreTrainedModel) -> int:
        """The id that stands at positions to draft."""
        if self.config.initial:
            mask_token_id = read_checkpoint(self.config.initial, {}, {}).spec.mask_token_id
            assert mask_token_id is not None
            return mask_token_id
        texts = [example.tokens for example in self.examples]
        return rarest_token(texts, target.config.get_text_config(decoder=True).vocab_size, _end_tokens(target))

    def _teacher(self, target: PreTrainedModel) -> Teacher | None:
        if isinstance(self.drafter, BlockDrafter):
            return Teacher(target, self.drafter.target_states)
        if self.config.conditioned:
            return Teacher(target, self.drafter.source_layers)
        stored = all(example.hidden is not None for example in [*self.examples, *self.held_out])
        return None if stored or not self.config.needs_states else Teacher(target, ())

    def _draft_vocabulary(self, target: PreTrainedModel, vocabulary: int) -> torch.Tensor | None:
        size, coverage, always = self.config.vocabulary_size, self.config.coverage, _end_tokens(target)
        if coverage is not None:
            size = covering_size(self._answers, coverage, always)
        if size == 0 or size >= vocabulary:
            return None
        return frequent_tokens(self._answers, size, always)

    @property
    def _answers(self) -> list[torch.Tensor]:
        return [example.tokens[example.prompt_length :] for example in self.examples]

    @cached_property
    def _vocabulary_figures(self) -> dict[str, Any]:
        """How many ids can be drafted, and the share of the training answers' tokens that they hold."""
        draft_vocabulary = self.drafter.draft_vocabulary
        if draft_vocabulary is None:
            return {"size": len(self.draft_index), "coverage": 1.0}
        covered = covered_share(self._answers, draft_vocabulary.cpu())
        return {"size": len(draft_vocabulary), "coverage": round(covered, 4)}

    def train(self, console: Console | None = None) -> dict[str, Any]:
        """Runs to the end of `steps` or `minutes`; returns the last evaluation's record, empty if none was left.

        Ctrl-C ends the step, stores it without an evaluation and raises KeyboardInterrupt.
        """
        record: dict[str, Any] = {}
        is_shown = console is not None and self.accelerator.is_main_process
        is_alone = self.accelerator.num_processes == 1  # several would have to agree on a step
        with Progress(self.config.steps, self.step, "step", is_shown) as bar, deferred_interrupt(is_alone) as stop:
            if self.step == 0:
                self.save(self.evaluate())
            while self.progress() < 1:
                started = time.monotonic()
                parts = self.train_step()
                seconds = time.monotonic() - started
                self.seconds = self._agreed(self.seconds + seconds)
                self.losses.update({**parts, "steps": 1})
                bar.advance(1, self._status(parts, seconds))
                if stop.is_made and self.progress() < 1:
                    self.save_checkpoint()
                    raise KeyboardInterrupt
                if self.step % self.config.evaluation_steps == 0 or self.progress() >= 1:
                    record = self.evaluate()
                    self.save(record)
                    if is_shown and console is not None and not console.quiet:
                        bar.say(_in_words(record))
        if record and self.accelerator.is_main_process:
            write_report(self.output)
        return record

    def _agreed(self, seconds: float) -> float:
        """The first process's clock, so that all processes stop after the same step."""
        if self.accelerator.num_processes == 1:
            return seconds
        clock = torch.tensor(seconds, dtype=torch.float64, device=self.accelerator.device)
        return float(broadcast(clock))

    def _status(self, parts: dict[str, float], seconds: float) -> dict[str, str]:
        """What the progress line shows after one step of `seconds`."""
        left = self.seconds * (1 / self.progress() - 1) / 60
        losses = {name: f"{value:.2f}" for name, value in parts.items() if name != "tokens"}
        return {"left": f"{left:.1f}min", "tokens/s": f"{parts['tokens'] / seconds:.0f}", **losses}

    def progress(self) -> float:
        """The share of the steps or of the minutes that is used up, whichever is larger."""
        steps = self.step / self.config.steps if self.config.steps else 0.0
        minutes = self.seconds / 60 / self.config.minutes if self.config.minutes else 0.0
        return max(steps, minutes)

    def train_step(self) -> dict[str, float]:
        """One optimizer step; this process's loss parts and the clean tokens that all processes saw."""
        config = self.config
        size = config.batch_size
        indices = batch_indices(self.lengths, size * self._batches_per_step, config.seed, self.step)
        factor = learning_rate_factor(self.step, self.progress(), config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        parts: Counter[str] = Counter()
        for micro in range(config.accumulation):
            number = micro * self.accelerator.num_processes + self.accelerator.process_index
            generator = step_generator(config.seed, self.step, number)
            examples = [self.examples[i] for i in indices[number * size :][:size]]
            batch = self._batch(examples, self.plan.drawn(examples, generator))
            is_last = micro == config.accumulation - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    outputs = self.model(batch.canvases, batch.features)
                    losses = training_loss(self.drafter, outputs, batch, config, generator)
                self.accelerator.backward(losses["loss"] / config.accumulation)
            parts.update({name: value.item() / config.accumulation for name, value in losses.items()})
        torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        self.optimizer.step()
        if config.optimizer == "adamw8bit":
            own = step_generator(config.seed, self.step, self._batches_per_step, device=self.accelerator.device)
            round_at_random(self.parameters, own)
        self.optimizer.zero_grad()
        self.average.update()
        self.step += 1
        return {**parts, "tokens": sum(self.lengths[i] for i in indices)}

    def _batch(self, examples: Sequence[Example], canvases: Canvases) -> Batch:
        batch = aligned(examples, canvases.to(self.accelerator.device), self.draft_index)
        return batch if self.teacher is None else self.teacher(batch)

    def evaluate(self) -> dict[str, Any]:
        """Held-out acceptance on fixed anchors and decoding of unseen prompts, with everything training.json keeps."""
        plan = dataclasses.replace(self.plan, anchors=self.config.held_out_anchors)
        with self.average.applied():
            drafts = [self._drafts(examples, plan.fixed(examples)) for examples in self._in_batches(self.held_out)]
            decoding = self._decoding() if self.unseen else None
        steps = self.losses.pop("steps", 0)
        losses = {name: round(value / max(steps, 1), 4) for name, value in self.losses.items()}
        self.losses.clear()
        return {
            "step": self.step,
            "minutes": round(self.seconds / 60, 2),
            "held_out": HeldOut.joined(drafts).figures(),
            **({} if decoding is None else {"decoding": decoding}),
            "losses": losses,
            "draft_vocabulary": self._vocabulary_figures,
            "source_layers": list(self.drafter.source_layers),
            "target": self.provenance.target,
            "command": self.provenance.command,
            "config": self.config.settings(),
            "processes": self.accelerator.num_processes,
            "data": self.provenance.data,
            "versions": versions(),
        }

    def _decoding(self) -> dict[str, Any]:
        """Of greedy decoding on the unseen prompts, simulated."""
        answers: list[Decoded] = []
        for examples in self._in_batches(self.unseen):
            canvases, starts = self.plan.every(examples)
            matches = self._drafts(examples, canvases).matches.unflatten(0, starts.shape)
            at_once = not (self.config.reads_states or self.config.lora)
            answers += answers_of(matches, starts, examples, drafts_at_once=at_once)
        return decoding_figures(answers, self.config.canvas_length)

    def _in_batches(self, examples: Sequence[Example]) -> list[Sequence[Example]]:
        size = self.config.batch_size
        return [examples[start : start + size] for start in range(0, len(examples), size)]

    def _drafts(self, examples: Sequence[Example], canvases: Canvases) -> HeldOut:
        batch = self._batch(examples, canvases)
        with self.accelerator.autocast():
            return self.held_out_drafts(batch)

    def held_out_drafts(self, batch: Batch) -> HeldOut:
        return held_out_drafts(self.drafter, batch)

    def save(self, record: dict[str, Any]) -> None:
        """Exports the drafter, then the checkpoint, then one line of the log; each replaces the older one at once."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        with self.average.applied():
            export(self.output, self.drafter, self.config, self.provenance, record)
        self.save_checkpoint()
        logged = ("step", "minutes", "held_out", "decoding", "losses")
        line: dict[str, Any] = {name: record[name] for name in logged if name in record}
        line["questions"] = len(self.examples)
        with (self.output / LOG).open("a") as log:
            log.write(json.dumps(line) + "\n")

    def save_checkpoint(self) -> None:
        """What a run needs to go on, bit for bit; the one before is replaced at once."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "config": self.config.settings(),
            "step": self.step,
            "seconds": self.seconds,
            "losses": dict(self.losses),
            "draft_vocabulary": self.drafter.draft_vocabulary,
            "mask_token_id": getattr(self.drafter, "mask_token_id", None),
            "parameters": [compact(p.detach()) for p in self.parameters],
            "averaged": self.average.values,
            "optimizer": self.optimizer.state_dict(),
        }
        with replacing(self.output / CHECKPOINT) as partial:
            torch.save(state, partial)

    def _checkpoint(self) -> dict[str, Any] | None:
        """The folder's checkpoint, if it has one. Raises ValueError if it was made with other settings."""
        path = self.output / CHECKPOINT
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu")
        stored = BEFORE | state["config"]
        for name, value in self.config.settings().items():
            if name in RESUMABLE or (name in CONDITIONED_ONLY and not self.config.conditioned):
                continue
            if name in LORA_ONLY and not self.config.lora:
                continue
            if stored.get(name) != value:
                raise ValueError(f"`{name}` must be {stored.get(name)!r} as in {path}, got {value!r}.")
        return state

    def _resume(self, state: dict[str, Any]) -> None:
        copy_tensors(state["parameters"], self.parameters)
        if self.average.values is not None:
            copy_tensors(state["averaged"], self.average.values)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.losses.update(state.get("losses", {}))


def _end_tokens(target: PreTrainedModel) -> list[int]:
    eos = target.generation_config.eos_token_id
    return [eos] if isinstance(eos, int) else list(eos or [])


def _in_words(record: dict[str, Any]) -> str:
    """An evaluation as one line."""
    held_out = record["held_out"]
    length = (
        f"mean_acceptance_length {held_out['mean_acceptance_length']:.2f} over {held_out['drafts']} held-out drafts"
    )
    if "decoding" in record:
        length += f", {record['decoding']['mean_acceptance_length']:.2f} in decoding of unseen prompts"
    return f"step {record['step']}, {record['minutes']} minutes: {length}"
