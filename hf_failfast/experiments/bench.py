"""The benchmark: its models and prompts, and what it measures, as one JSON document."""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from shutil import copytree
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ..decoding.round_costs import measure as measure_costs
from ..decoding.stats import SpecDecodingStats
from ..drafters import DiffusionDrafter, load_drafter
from ..engine.exact.forwards import check_possible
from ..measure.methods import CAPTURED_PLAIN, PLAIN, Method, drafted, plain_of, title
from ..measure.metrics import speedup_of, summarise
from ..measure.records import SpeedRecord
from ..measure.timing import Prompts, time_answers
from ..pairs import DEMO_PROMPTS, Pair, encode_prompt, is_without_weights, load_pair
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


def load(target: str | None, drafter: str | None, dtype: Any, device: str) -> Pair:
    """The pair; models with only a `config.json` get random weights, and then need no tokenizer."""
    if target is None or drafter is None or not is_without_weights(target):
        return load_pair(target, drafter, dtype, device)
    names = {"target": target, "drafter": drafter}
    model = _random_model(target, dtype).to(device)
    return Pair(model, None, _random_drafter(drafter, model.dtype, model.device), names)


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
    methods: Sequence[Method],
    prompts: Sequence[Prompts],  # of one row each
    repeats: int,
    on_progress: Callable[[float], None],
) -> dict[str, Any]:
    """Times the methods and describes the machine.

    `results`, `costs_ms`, `floor`; and ours over the fastest of transformers' methods: the fastest of ours
    (`speedup_over_best_hf`), and the method `hf_failfast`, which is what a call without options gets (`default_...`);
    and over the fastest form of plain decoding, which `fastest_plain` names.
    """
    arms = {method.title: partial(method.run, target) for method in methods}
    records = time_answers(arms, target, prompts, repeats, on_progress=on_progress)
    context = sum(prompt.ids.shape[1] + prompt.max_length for prompt in prompts) // (2 * len(prompts))
    costs = measure_costs(target, drafter, 1, context)
    rows = [row(name, found) | interval(found) | _where_time_goes(found) for name, found in records.items()]
    ours = {each["method"]: each["speedup"] for each in rows if "time_share" in each}
    best_hf = max(each["speedup"] for each in rows if each["method"] not in {*ours, CAPTURED_PLAIN})
    fastest = fastest_plain(rows)
    return {
        "results": rows,
        "speedup_over_best_hf": round(max(ours.values()) / best_hf, 3),
        "default_speedup_over_best_hf": round(ours[title("failfast")] / best_hf, 3),
        "fastest_plain": fastest["method"],
        "speedup_over_fastest_plain": round(max(ours.values()) / fastest["speedup"], 3),
        "default_speedup_over_fastest_plain": round(ours[title("failfast")] / fastest["speedup"], 3),
        "costs_ms": {
            name: {str(count): round(1e3 * seconds, 3) for count, seconds in points}
            for name, points in asdict(costs).items()
        },
        "floor": floor(target, context, costs.verify[0][1]),
    }


def measure_exact(
    target: PreTrainedModel,
    drafter: DiffusionDrafter,
    options: dict[str, Any],
    prompts: Sequence[Prompts],  # of one row each
    repeats: int,
    on_progress: Callable[[float], None],
) -> dict[str, Any]:
    """Times decoding with exact forwards, plain and drafted, beside plain `generate`.

    `results`: rows whose speedups and identical answers are over plain decoding with exact forwards. `refused`: None,
    or why the target has no such forwards; then there are no rows.
    """
    config = drafter.config.with_options(options | {"exact": True})
    methods = [plain_of(config), drafted(drafter, config), PLAIN]
    arms = {method.title: partial(method.run, target) for method in methods}
    try:
        check_possible(target)
        records = time_answers(arms, target, prompts, repeats, on_progress=on_progress)
    except ValueError as error:
        return {"results": [], "refused": str(error)}
    return {"results": [row(name, found) | interval(found) for name, found in records.items()], "refused": None}


def fastest_plain(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of plain decoding's fastest form: `generate`, compiled, or captured as CUDA graphs."""
    forms = (title("plain"), title("plain", is_compiled=True), title("plain", is_exact=True), CAPTURED_PLAIN)
    return max((each for each in rows if each["method"] in forms), key=lambda each: each["speedup"])


def row(method: str, records: Sequence[SpeedRecord]) -> dict[str, Any]:
    """A method's line in the documents of bench and demo. identical: how many of its answers are plain decoding's."""
    speed = summarise(records)
    margins = [each.first_difference_margin for each in records if each.first_difference_margin is not None]
    length = speed.get("mean_acceptance_length")
    return {
        "method": method,
        "tokens_per_second": round(speed["tokens_per_second"], 2),
        "speedup": round(speed["speedup"], 3),
        "mean_acceptance_length": None if length is None else round(length, 3),
        "identical": sum(each.identical is True for each in records),
        "largest_margin_at_first_difference": max(margins, default=None),
        "prompts": len(records),
    }


def interval(records: Sequence[SpeedRecord]) -> dict[str, float]:
    """The limits of the 95 % interval of a method's speedup over prompts."""
    speedup = speedup_of(records)
    return {"speedup_low": round(speedup.speedup_low, 3), "speedup_high": round(speedup.speedup_high, 3)}


def _where_time_goes(records: Sequence[SpeedRecord]) -> dict[str, Any]:
    """Shares of the time of ours, and what was accepted in a round; nothing for the other methods."""
    stats = [record.stats for record in records if record.stats is not None]
    if not stats:
        return {}
    total = SpecDecodingStats.total(stats)
    seconds = {"draft": total.draft_seconds, "verify": total.verify_seconds, "host": total.other_seconds}
    accepted = Counter(record.accepted for record in total.records)
    return {
        "time_share": {name: round(value / sum(seconds.values()), 4) for name, value in seconds.items()},
        "plain_rounds": total.plain_rounds,
        "rounds": total.rounds,
        "drafter_passes_per_round": round(total.drafter_passes / total.rounds, 3),
        "accepted_lengths": [accepted[length] for length in range(max(accepted) + 1)],
    }
