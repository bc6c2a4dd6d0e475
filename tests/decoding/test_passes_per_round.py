"""Bounds on the cost of a round: drafter passes, and memory that does not grow with the text."""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from conftest import drafter, failfast, prompt, target, tiny_model
from sessions import logits_of
from torch.utils._python_dispatch import TorchDispatchMode

import hf_failfast
from hf_failfast.drafters.masked.session import MaskedDrafter
from hf_failfast.drafters.spec import DrafterSpec
from hf_failfast.engine.runner import EagerRunner

OPTIONS = {"return_dict_in_generate": True}


def test_drafter_passes_per_round() -> None:
    """A block-causal drafter takes at most 1.4 passes per round; the authors' code takes 3.2."""
    model = tiny_model("qwen2", seed=1, vocab_size=128)
    spec = DrafterSpec("block_causal", 1, 121, block_size=32)
    proposer = MaskedDrafter(model, spec, hf_failfast.FailFastConfig(chunk_length=10))
    stats = failfast(target("qwen2"), prompt(40), proposer, max_new_tokens=200, **OPTIONS).speculation
    assert stats.drafted > 9 * stats.rounds
    assert stats.drafter_passes <= 1.4 * stats.rounds


class AllocatedBytes(TorchDispatchMode):
    """Bytes of new storage since the last reset."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor)}
        output = func(*args, **(kwargs or {}))
        for value in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in given:
                self.bytes += value.untyped_storage().nbytes()
        return output


@contextmanager
def bytes_by_round(*models: torch.nn.Module) -> Iterator[list[int]]:
    """Bytes that each round allocates outside of the models' own forwards."""
    counts: list[int] = []
    with AllocatedBytes() as allocated:
        before: list[int] = []

        def pause(*_: Any) -> None:
            before.append(allocated.bytes)

        def resume(module: torch.nn.Module, *_: Any) -> None:
            allocated.bytes = before.pop()
            if module is models[0]:
                counts.append(allocated.bytes)
                allocated.bytes = 0

        handles = [model.register_forward_pre_hook(pause) for model in models]
        handles += [model.register_forward_hook(resume) for model in models]
        try:
            yield counts
        finally:
            for handle in handles:
                handle.remove()


def test_no_round_copies_the_cache() -> None:
    """A round allocates < 100 bytes per token of text; a copy of the K/V would take 128 per layer."""
    medians = []
    proposer = drafter("canvas_shift", "llama")
    for length in (50, 1050):
        with bytes_by_round(target("llama"), proposer.model) as counts:
            failfast(target("llama"), prompt(length), proposer, max_new_tokens=60, max_draft_length=2)
        assert len(counts) > 10
        medians.append(median(counts[1:]))
    per_token = (medians[1] - medians[0]) / 1000
    assert per_token < 100  # token ids and masks of a few rows


def test_no_forward_copies_keys_and_values() -> None:
    """A forward allocates < 100 bytes per token of text; SDPA's copy of K/V per query head would take 1024."""
    runner = EagerRunner(target("llama"))
    counts = []
    for length in (50, 1050):
        cache = runner.new_cache(2000)
        logits_of(runner, prompt(length), cache, read=1)
        with AllocatedBytes() as allocated:
            logits_of(runner, prompt(3), cache, read=3)
        counts.append(allocated.bytes)
    per_token = (counts[1] - counts[0]) / 1000
    assert 3 <= per_token < 100  # masks: of the window, and of two layers with two heads per group
