"""Decoding methods compared on the same prompts: speed, acceptance, and whether they write the same."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from ..decoding.stats import SpecDecodingStats
from ..drafters import DiffusionDrafter
from .timing import side_by_side

Method = Callable[..., Any]

BASELINE = "plain generate"
OURS = "hf_failfast"
WARM_UP_TOKENS = 16


@dataclass
class MethodResult:
    """One method over all prompts. Seconds are medians over the repeats, one per prompt."""

    name: str
    seconds: list[float] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)
    identical: list[bool] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)  # the baseline's top-2 logit gap where a text first differs
    stats: list[SpecDecodingStats] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return sum(self.new_tokens) / sum(self.seconds)

    @property
    def mean_acceptance_length(self) -> float | None:
        """Tokens per target forward, over all prompts; None where the method does not tell."""
        rounds = sum(stats.rounds for stats in self.stats)
        return sum(stats.emitted for stats in self.stats) / rounds if rounds else None


def default_methods(target: PreTrainedModel, drafter: DiffusionDrafter, options: dict[str, Any]) -> dict[str, Method]:
    """Plain `generate`, transformers' prompt lookup, and ours with the given FailFast options."""
    return {
        BASELINE: target.generate,
        "HF prompt lookup": lambda **inputs: target.generate(**inputs, prompt_lookup_num_tokens=10),
        OURS: lambda **inputs: target.generate(
            **inputs, assistant_model=drafter, custom_generate="hf_failfast", **options
        ),
    }


def compare(
    methods: dict[str, Method],
    prompts: Sequence[torch.Tensor],  # (1, n) each
    max_new_tokens: int,
    repeats: int,
    on_progress: Callable[[float], None] = lambda done: None,
) -> list[MethodResult]:
    """Times greedy answers. The first method is the baseline that the others' tokens are compared with."""
    arguments = {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    results = {name: MethodResult(name) for name in methods}
    requests = [{"inputs": prompt} | arguments for prompt in prompts]
    short = requests[0] | {"max_new_tokens": min(WARM_UP_TOKENS, max_new_tokens)}
    arms = {name: partial(_ask, method) for name, method in methods.items()}
    timings = side_by_side(arms, requests, repeats, warm_up=short)
    for done, (prompt, runs) in enumerate(zip(prompts, timings, strict=True)):
        outputs: dict[str, Any] = {}
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        for count, (name, output, elapsed) in enumerate(runs, 1):
            outputs[name] = output
            seconds[name].append(elapsed)
            on_progress((done + count / (len(methods) * repeats)) / len(prompts))
        _record(results.values(), prompt.shape[1], outputs, seconds)
    return list(results.values())


def _ask(method: Method, request: dict[str, Any]) -> Any:
    return method(**request)


def _record(
    results: Iterable[MethodResult], prompt_length: int, outputs: dict[str, Any], seconds: dict[str, list[float]]
) -> None:
    reference = next(iter(outputs[result.name] for result in results))
    for result in results:
        output = outputs[result.name]
        result.seconds.append(median(seconds[result.name]))
        result.new_tokens.append(output.sequences.shape[1] - prompt_length)
        result.identical.append(torch.equal(output.sequences, reference.sequences))
        if not result.identical[-1]:
            result.margins.append(_margin_at_difference(reference, output.sequences, prompt_length))
        if "speculation" in output:
            result.stats.append(output["speculation"])


def _margin_at_difference(reference: Any, sequences: torch.Tensor, prompt_length: int) -> float:
    """How much the baseline preferred its token to its second choice at the first token that another method chose
    differently: near zero where rounding decided."""
    both = min(reference.sequences.shape[1], sequences.shape[1])
    differs = reference.sequences[0, :both] != sequences[0, :both]
    position = int(differs.long().argmax()) if differs.any() else both - 1
    best, second = reference.logits[position - prompt_length][0].topk(2).values.tolist()
    return best - second


def summary(results: Sequence[MethodResult]) -> list[dict[str, Any]]:
    """One record per method: tokens/s, speedup over the first (ratio of tokens/s), acceptance, identical outputs."""
    baseline = results[0].tokens_per_second
    return [
        {
            "method": result.name,
            "tokens_per_second": round(result.tokens_per_second, 2),
            "speedup": round(result.tokens_per_second / baseline, 3),
            "mean_acceptance_length": (
                None if result.mean_acceptance_length is None else round(result.mean_acceptance_length, 3)
            ),
            "identical": sum(result.identical),
            "largest_margin_at_first_difference": max(result.margins, default=None),
            "prompts": len(result.identical),
        }
        for result in results
    ]
