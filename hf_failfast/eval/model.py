"""The lm-eval model `hf_failfast`: lm-eval's Hugging Face model, with a decoding method and a stopwatch."""

import platform
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..engine.cpu.packed_weights import prepack
from ..measure.exact_stops import NewCriterion
from ..measure.methods import PLAIN, plain_exact
from ..measure.metrics import summarise
from ..measure.records import SpeedRecord, attach, paired
from ..measure.timing import WARM_UP_TOKENS, Prompts, in_random_order
from ..version import __version__
from .options import EvalOptions, load_method
from .quantisation import take_quantisation


@register_model("hf_failfast")
class HFFailFastLM(HFLM):
    """`hf` of lm-eval with the options of `EvalOptions`; everything but generation is lm-eval's own.

    Every generated answer leaves a `SpeedRecord` on its request, where `SpeedTask` finds it. Works on causal LMs, one
    process or many: under accelerate or torchrun the rank is the process's number among all machines, which lm-eval's
    own model gets wrong beyond one machine and without GPUs.
    """

    def __init__(self, pretrained: Any, **arguments: Any) -> None:
        self.options = EvalOptions.take(arguments)
        self._quantisation = take_quantisation(arguments)
        if arguments.get("device_map") is not None and not arguments.get("parallelize"):
            raise ValueError("`device_map` needs `parallelize=True`; lm-eval ignores it otherwise.")
        super().__init__(pretrained, **arguments)
        if self.backend != "causal":
            raise ValueError(f"`pretrained` must be a causal LM for hf_failfast, but its backend is {self.backend!r}.")
        if hasattr(self, "accelerator"):
            self._rank = self.accelerator.process_index
            self._world_size = self.accelerator.num_processes
            self._device = self.accelerator.device
        self.method = load_method(self.options, self.model)
        if self.options.prepack:
            assistant = self.method.arguments.get("assistant_model")
            prepack(self.model, *([] if assistant is None else [assistant]))
        self._plain = plain_exact() if self.method.is_exact else PLAIN
        self._order = random.Random(self.options.order_seed)
        self._is_warm = False
        self._last_records: list[SpeedRecord] = []
        self._records_by_task: defaultdict[str, list[SpeedRecord]] = defaultdict(list)

    def _create_model(self, *args: Any, quantization_config: Any = None, **kwargs: Any) -> None:
        if self._quantisation is not None and quantization_config is not None:
            raise ValueError("The checkpoint is quantised already: leave out `load_in_4bit` and `load_in_8bit`.")
        super()._create_model(*args, quantization_config=quantization_config or self._quantisation, **kwargs)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """lm-eval's own, batch by batch, so that each answer's record finds its request."""
        texts: dict[int, str] = {}
        progress = tqdm(
            total=len(requests), disable=disable_tqdm or self.rank != 0, desc=f"{self.method.name} answers"
        )
        for indices in self._batches(requests):
            batch = [requests[index] for index in indices]
            texts |= zip(indices, super().generate_until(batch, disable_tqdm=True), strict=True)
            for request, record in zip(batch, self._last_records, strict=True):
                attach(request, record)
                self._records_by_task[str(request.task_name)].append(record)
            progress.update(len(batch))
        progress.close()
        return [texts[index] for index in range(len(requests))]

    def _batches(self, requests: list[Instance]) -> Iterator[list[int]]:
        """Indices of requests that share their arguments, longest prompt first: lm-eval's own order in a batch."""
        if not isinstance(self.batch_size, int):
            raise ValueError(f"`batch_size` must be an integer to measure generation, but is {self.batch_size!r}.")
        keys = [(-len(self.tok_encode(request.args[0])), request.args[0]) for request in requests]
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for index in sorted(range(len(requests)), key=keys.__getitem__):
            groups[repr(requests[index].args[1])].append(index)
        for indices in groups.values():
            for start in range(0, len(indices), self.batch_size):
                yield indices[start : start + self.batch_size]

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> torch.Tensor:
        """The ids (batch, n + m) of the chosen method for left-padded prompts (batch, n)."""
        mask = generation_kwargs.pop("attention_mask")
        arguments = {"pad_token_id": self.tokenizer.pad_token_id} | _sampling(generation_kwargs)
        prompts = Prompts(context, mask, max_length, stop_strings(self.tokenizer, stop), arguments)
        with torch.autocast(
            self.device.type, dtype=self.mixed_precision_dtype, enabled=self.mixed_precision_dtype is not None
        ):
            self._last_records = self._answer(prompts)
        width = max(record.new_tokens for record in self._last_records)
        padding = [self.tokenizer.pad_token_id] * width
        ends = [[*(record.token_ids or ()), *padding][:width] for record in self._last_records]
        return torch.cat([context, context.new_tensor(ends)], dim=1)

    def _answer(self, prompts: Prompts) -> list[SpeedRecord]:
        """The chosen method's records, beside plain decoding's if that is asked for; each runs in random order."""
        arms = {"method": partial(self.method.run, self.model)}
        if self.options.compare_plain:
            arms["plain"] = partial(self._plain.run, self.model)
        if not self._is_warm:
            for arm in arms.values():
                arm(prompts.up_to(WARM_UP_TOKENS))
            self._is_warm = True
        found = {run.arm: run.output for run in in_random_order(arms, prompts, 1, self._order)}
        records = found["method"]
        if self.options.compare_plain:
            records = [
                paired(record, plain, self.model, prompts.row(row).ids, prompts.is_greedy)
                for row, (record, plain) in enumerate(zip(records, found["plain"], strict=True))
            ]
        return [record.with_latencies(self.options.latencies) for record in records]

    def get_model_info(self) -> dict[str, Any]:
        """lm-eval's model facts, the options with the drafter's own numbers, and every task's speed, stock tasks' too.

        With several processes the speed is that of the first one's documents: the others may all be asked nothing.
        """
        config = self.method.arguments.get("failfast_config")
        speed = {task: summarise(records) for task, records in self._records_by_task.items()}
        return super().get_model_info() | {
            "hf_failfast": {
                "options": asdict(self.options) | (asdict(config) if config else {}),
                "version": __version__,
                "device": _device_name(self.device),
                "threads": torch.get_num_threads(),
                "processes": self.world_size,
                "speed": speed,
            }
        }


def stop_strings(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> NewCriterion | None:
    """What makes lm-eval's criterion for one answer; None without a stop string."""
    if not stop:
        return None
    return lambda prompt_length: stop_sequences_criteria(tokenizer, list(stop), prompt_length, 1)


def _sampling(generation_kwargs: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's rule: without `do_sample`, a temperature of 0 or none means greedy decoding."""
    temperature = generation_kwargs.get("temperature", 0.0)
    do_sample = generation_kwargs.get("do_sample", None if temperature else False)
    rest = {name: value for name, value in generation_kwargs.items() if name not in ("temperature", "do_sample")}
    if do_sample is not None:
        rest["do_sample"] = do_sample
    return rest | ({"temperature": temperature} if temperature else {})


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
