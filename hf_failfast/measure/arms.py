"""One decoding method, run and timed on a batch of prompts."""

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import FailFastConfig
from ..decoding.stats import SpecDecodingStats
from ..drafters import DiffusionDrafter, DraftRequest, load_drafter
from ..engine.causal_lm import execution_device
from ..eval.options import EvalOptions
from .assistants import load_assistant
from .exact_stops import ExactStops

DEFAULT_PROMPT_LOOKUP_TOKENS = 10


@dataclass(frozen=True)
class Prompts:
    """A batch as lm-eval prepares it, left-padded."""

    ids: torch.Tensor  # (batch, n)
    attention_mask: torch.Tensor  # (batch, n)
    max_length: int
    stop: Sequence[str]
    generation_kwargs: dict[str, Any]

    def row(self, index: int) -> "Prompts":
        """One prompt alone, without its padding."""
        kept = self.attention_mask[index].bool()
        ids = self.ids[index : index + 1, kept]
        max_length = self.max_length - self.ids.shape[1] + ids.shape[1]
        return Prompts(ids, torch.ones_like(ids), max_length, self.stop, self.generation_kwargs)


@dataclass(frozen=True)
class Answer:
    """One row's answer. rounds: target forwards; stats: of the methods of this package."""

    token_ids: list[int]
    seconds: float
    peak_memory_mib: float
    rounds: int | None = None
    drafter_passes: int | None = None
    stats: SpecDecodingStats | None = None


@dataclass(frozen=True)
class Arm:
    """A method's arguments of `generate`.

    one_row: the method takes one prompt at a time, so that a batch is answered row by row.
    counts_forwards: transformers tells nothing of its drafting, so that forwards are counted from outside.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    one_row: bool = True
    counts_forwards: bool = False

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts) -> list[Answer]:
        """The batch's answers in order."""
        if self.one_row and prompts.ids.shape[0] > 1:
            rows = (prompts.row(index) for index in range(prompts.ids.shape[0]))
            return [answer for row in rows for answer in self.run(model, tokenizer, row)]
        stops = ExactStops(tokenizer, prompts.stop, _eos_token_ids(model), prompts.ids.shape[1], prompts.ids.shape[0])
        device = prompts.ids.device
        assistant = self.arguments.get("assistant_model")
        with _counted(model, self.counts_forwards) as rounds, _counted(assistant, self.counts_forwards) as passes:
            started = _start(device)
            output = model.generate(
                input_ids=prompts.ids,
                attention_mask=prompts.attention_mask,
                max_length=prompts.max_length,
                stopping_criteria=[stops],
                **{"pad_token_id": tokenizer.pad_token_id, "use_cache": True}
                | self.arguments
                | prompts.generation_kwargs
                | {"return_dict_in_generate": True},
            )
            seconds = _stop(device) - started
        answers = stops.cut(output.sequences, prompts.ids.shape[1])
        stats = output.get("speculation")
        share = seconds / len(answers)
        memory = _peak_memory_mib(device)
        if self.counts_forwards:
            return [Answer(ids, share, memory, rounds[0], passes[0] if assistant else None) for ids in answers]
        if stats is not None:
            return [Answer(ids, share, memory, stats.rounds, stats.drafter_passes, stats) for ids in answers]
        return [Answer(ids, share, memory) for ids in answers]


PLAIN = Arm("plain", one_row=False)


def load_arm(options: EvalOptions, target: PreTrainedModel) -> Arm:
    """The method that the options name, its drafter loaded beside the target in the target's dtype."""
    if options.method == "plain":
        return PLAIN
    if options.method == "prompt_lookup":
        tokens = options.num_assistant_tokens or DEFAULT_PROMPT_LOOKUP_TOKENS
        return Arm("prompt_lookup", {"prompt_lookup_num_tokens": tokens}, counts_forwards=True)
    assert options.assistant is not None
    if options.method == "assisted":
        assistant = load_assistant(options.assistant, target)
        if options.num_assistant_tokens is not None:
            assistant.generation_config.num_assistant_tokens = options.num_assistant_tokens
            assistant.generation_config.num_assistant_tokens_schedule = "constant"
        return Arm("assisted", {"assistant_model": assistant}, counts_forwards=True)
    drafter = load_drafter(options.assistant, dtype=target.dtype, device_map=execution_device(target))
    drafter.start(DraftRequest(target, capacity=1))  # refuses a drafter that does not fit this target
    config = drafter.config.with_options(options.failfast_options)
    if options.method == "fixed":  # a cap of one chunk leaves nothing to extend
        config = config.with_options({"max_draft_length": config.chunk_length})
    return drafted_arm(drafter, config, options.method)


def drafted_arm(drafter: DiffusionDrafter, config: FailFastConfig, name: str = "failfast") -> Arm:
    """This package's decoding with a drafter and a chunk rule."""
    return Arm(name, {"custom_generate": "hf_failfast", "assistant_model": drafter, "failfast_config": config})


def _eos_token_ids(model: PreTrainedModel) -> list[int]:
    ids = model.generation_config.eos_token_id
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


@contextmanager
def _counted(model: Any, wanted: bool) -> Iterator[list[int]]:
    """A list whose one entry is the number of forwards that the model has made inside."""
    count = [0]
    if not wanted or model is None:
        yield count
        return

    def add(*_: object) -> None:
        count[0] += 1

    handle = model.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        handle.remove()


def _start(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux: the process's largest size counts from here on
            Path("/proc/self/clear_refs").write_text("5")
    return perf_counter()


def _stop(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _peak_memory_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
