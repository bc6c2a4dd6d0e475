"""The benchmark: its models and prompts, and what it measures, as one JSON document."""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ..decoding.round_costs import measure as measure_costs
from ..decoding.stats import SpecDecodingStats
from ..drafters import DiffusionDrafter, load_drafter
from ..measure.bootstrap import paired_speedup
from ..measure.comparison import OURS, Method, MethodResult, compare, summary
from ..pairs import DEMO_PROMPTS, Pair, encode_prompt, load_pair
from .floor import floor

# The demo's, and prompts of other kinds.
PROMPTS = (
    *DEMO_PROMPTS,
    "Explain photosynthesis to a child.",
    "Write a C function that reverses a string.",
    "Give me a recipe for pancakes.",
    "Summarise the plot of Romeo and Juliet in three sentences.",
)
RANDOM_PROMPTS, RANDOM_PROMPT_TOKENS = 4, 64
WEIGHTS = ("*.safetensors", "*.bin")


def load(target: str | None, drafter: str | None, dtype: Any, device: str) -> Pair:
    """The pair; models of which there is only a `config.json` get random weights, and no tokenizer is needed then."""
    if target is None or drafter is None or not is_without_weights(target):
        return load_pair(target, drafter, dtype, device)
    names = {"target": target, "drafter": drafter}
    model = _random_model(target, dtype).to(device)
    return Pair(model, None, _random_drafter(drafter, model.dtype, model.device), names)


def is_without_weights(folder: str) -> bool:
    """Whether the folder holds a model's config and nothing else of it."""
    path = Path(folder)
    return (path / "config.json").is_file() and not any(file for pattern in WEIGHTS for file in path.glob(pattern))


def _random_model(folder: str, dtype: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    return AutoModelForCausalLM.from_config(config, **({} if dtype == "auto" else {"dtype": dtype})).eval()


def _random_drafter(folder: str, dtype: torch.dtype, device: torch.device) -> DiffusionDrafter:
    if not is_without_weights(folder):
        return load_drafter(folder, dtype=dtype, device_map=device)
    with tempfile.TemporaryDirectory() as scratch:
        _random_model(folder, dtype).save_pretrained(scratch)
        copytree(folder, scratch, dirs_exist_ok=True)  # the config as it was: it says how the drafter drafts
        return load_drafter(scratch, dtype=dtype, device_map=device)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[str], target: PreTrainedModel
) -> list[torch.Tensor]:
    """The prompts' ids (1, n); random ones where there is no tokenizer."""
    if tokenizer is not None:
        return [encode_prompt(tokenizer, text).to(target.device) for text in texts]
    generator = torch.Generator().manual_seed(0)
    vocab_size = target.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(vocab_size, (RANDOM_PROMPTS, 1, RANDOM_PROMPT_TOKENS), generator=generator)
    return list(ids.to(target.device))


def measure(
    target: PreTrainedModel,
    drafter: DiffusionDrafter,
    methods: dict[str, Method],
    prompts: Sequence[torch.Tensor],  # (1, n) each
    max_new_tokens: int,
    repeats: int,
    on_progress: Callable[[float], None],
) -> dict[str, Any]:
    """Times the methods and describes the machine.

    `results`, `costs_ms`, `floor`; and ours over the fastest of transformers' methods: the fastest of ours
    (`speedup_over_best_hf`), and the arm `hf_failfast`, which is what a call without options gets (`default_...`).
    """
    results = compare(methods, prompts, max_new_tokens, repeats, on_progress)
    context = sum(prompt.shape[1] for prompt in prompts) // len(prompts) + max_new_tokens // 2
    costs = measure_costs(target, drafter, 1, context)
    plain = results[0]
    records = []
    for result, record in zip(results, summary(results), strict=True):
        interval = paired_speedup(result.seconds, result.new_tokens, plain.seconds, plain.new_tokens)
        low, high = round(interval.speedup_low, 3), round(interval.speedup_high, 3)
        records.append(record | {"speedup_low": low, "speedup_high": high} | _where_time_goes(result))
    ours = {record["method"]: record["speedup"] for record in records if record["method"].startswith(OURS)}
    best_hf = max(record["speedup"] for record in records if record["method"] not in ours)
    return {
        "results": records,
        "speedup_over_best_hf": round(max(ours.values()) / best_hf, 3),
        "default_speedup_over_best_hf": round(ours[OURS] / best_hf, 3),
        "costs_ms": {
            name: {str(count): round(1e3 * seconds, 3) for count, seconds in points}
            for name, points in asdict(costs).items()
        },
        "floor": floor(target, context, costs.verify[0][1]),
    }


def _where_time_goes(result: MethodResult) -> dict[str, Any]:
    """Shares of the time of ours, and what was accepted in a round; nothing for the other methods."""
    if not result.stats:
        return {}
    total = SpecDecodingStats.total(result.stats)
    seconds = {
        "draft": total.draft_seconds,
        "verify": total.verify_seconds,
        "host": total.other_seconds,
    }
    accepted = Counter(record.accepted for record in total.records)
    return {
        "time_share": {name: round(value / sum(seconds.values()), 4) for name, value in seconds.items()},
        "plain_rounds": total.plain_rounds,
        "rounds": total.rounds,
        "drafter_passes_per_round": round(total.drafter_passes / total.rounds, 3),
        "accepted_lengths": [accepted[length] for length in range(max(accepted) + 1)],
    }
