"""Whether captured decoding writes what eager decoding writes, and the ways in which graphs may fail."""

import threading
from typing import Any

import torch
from transformers import PreTrainedModel

import hf_failfast
from hf_failfast.drafters import DrafterSpec
from hf_failfast.drafters.masked.session import MaskedDrafter
from hf_failfast.engine.runner_pool import RunnerPool

from .machine import Machine


def compare_generations(machine: Machine) -> dict[str, Any]:
    """Tokens in fp32: plain, drafted eagerly, drafted from graphs; and the ways in which graphs may fail."""
    target = small(machine)
    prompt = torch.arange(40, device=machine.device)[None] % 400
    settings = {"max_new_tokens": 64 if machine.is_gpu else 10, "do_sample": False}
    expected = target.generate(prompt, **settings)
    found: dict[str, Any] = {}
    for attention, block in (("causal_canvas", None), ("block_causal", 32)):
        for name in ("eager", "cuda_graphs"):
            drafter = own_drafter(machine, target, attention, block, name)
            first = generate(target, prompt, drafter, settings)
            again = generate(target, prompt, drafter, settings)
            found[f"{attention}, {name}"] = bool(torch.equal(first, expected) and torch.equal(again, expected))
    found["threads"] = _in_threads(target, prompt, own_drafter(machine, target), settings, expected)
    found["captures in a second call"] = _captures_in_a_second_call(machine, target, prompt, settings)
    found["a failed capture"] = _after_failed_capture(machine, target, prompt, settings, expected)
    return found


def small(machine: Machine) -> PreTrainedModel:
    """In fp32, with logits well apart: rounding decides nothing."""
    model = machine.model("small", torch.float32)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    return model


def own_drafter(
    machine: Machine,
    target: PreTrainedModel,
    attention: Any = "causal_canvas",
    block: int | None = None,
    runner: Any = "cuda_graphs",
) -> MaskedDrafter:
    """The target's own weights as its drafter, so that some drafts are accepted."""
    spec = DrafterSpec(attention, 1, 499, block_size=block)
    drafter = MaskedDrafter(target, spec, hf_failfast.FailFastConfig(confidence_threshold=0.3, chunk_length=4))
    drafter.runners = RunnerPool(runner, machine.graphs())
    return drafter


def generate(
    target: PreTrainedModel, prompt: torch.Tensor, drafter: MaskedDrafter, settings: dict[str, Any]
) -> torch.Tensor:
    return target.generate(prompt, assistant_model=drafter, custom_generate="hf_failfast", **settings)


def _in_threads(
    target: PreTrainedModel,
    prompt: torch.Tensor,
    drafter: MaskedDrafter,
    settings: dict[str, Any],
    expected: torch.Tensor,
) -> bool:
    results: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(generate(target, prompt, drafter, settings))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(results) == 3 and all(torch.equal(result, expected) for result in results)


def _captures_in_a_second_call(
    machine: Machine, target: PreTrainedModel, prompt: torch.Tensor, settings: dict[str, Any]
) -> int:
    drafter = own_drafter(machine, target)
    counts = []
    for _ in range(2):
        generate(target, prompt, drafter, settings)
        kept = drafter.runners._kept[target].values()
        counts.append(sum(len(slots.forwards) for each in kept for slots in each.idle))
    assert counts[0] > 0, "nothing was captured"
    return counts[1] - counts[0]


def _after_failed_capture(
    machine: Machine, target: PreTrainedModel, prompt: torch.Tensor, settings: dict[str, Any], expected: torch.Tensor
) -> bool:
    """A synchronisation inside of the capture makes CUDA refuse it; the text must be right, and later graphs too."""
    drafter = own_drafter(machine, target)
    norm = target.model.norm
    forward = norm.forward

    def reading(hidden: torch.Tensor) -> torch.Tensor:
        if machine.is_gpu and torch.cuda.is_current_stream_capturing():
            hidden.sum().item()
        return forward(hidden)

    norm.forward = reading
    try:
        is_right = torch.equal(generate(target, prompt, drafter, settings), expected)
    finally:
        del norm.forward
    is_given_up = not machine.is_gpu or any(each.problem for each in drafter.runners._kept[target].values())
    torch.rand(1, device=machine.device)  # raises if the generator takes itself for captured
    later = generate(target, prompt, own_drafter(machine, target), settings)
    return bool(is_right and is_given_up and torch.equal(later, expected))
