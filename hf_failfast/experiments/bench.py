"""What the benchmark measures, as one JSON document."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel

from ..decoding.round_costs import measure as measure_costs
from ..decoding.stats import SpecDecodingStats
from ..drafters import DiffusionDrafter
from ..measure.bootstrap import paired_speedup
from ..measure.comparison import OURS, Method, MethodResult, compare, summary
from .floor import floor


def measure(
    target: PreTrainedModel,
    drafter: DiffusionDrafter,
    methods: dict[str, Method],
    prompts: Sequence[torch.Tensor],  # (1, n) each
    max_new_tokens: int,
    repeats: int,
    on_progress: Callable[[], None] = lambda: None,
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
