"""A drafter that learns from a user's own prompts, and what that does on prompts it did not see."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..decoding.stats import SpecDecodingStats
from ..drafters import DiffusionDrafter, Learning
from ..drafters.learning.texts import LENGTH
from ..measure.bootstrap import ratio_interval
from ..pairs import Pair, encode_prompt

# One prompt in this many is held out.
HELD_OUT = 5


def adapt(
    pair: Pair,
    prompts: Sequence[str],
    max_new_tokens: int = 128,
    passes: int = 2,
    rank: int = 8,
    on_progress: Callable[[float], None] = lambda done: None,
) -> tuple[Learning, dict[str, Any]]:
    """(the learner, a document) after greedy answers to four prompts in five; the others are answered before and
    after.

    passes: steps per piece of `LENGTH` tokens. Raises ValueError on fewer than two prompts.
    """
    if len(prompts) < 2:
        raise ValueError(
            f"`prompts` must hold at least 2 prompts, one of them to measure on, but holds {len(prompts)}."
        )
    held_out = list(prompts[::-HELD_OUT])
    own = [prompt for index, prompt in enumerate(prompts) if (len(prompts) - 1 - index) % HELD_OUT]
    learner = Learning(pair.drafter, learning_share="between requests", rank=rank)
    total, done = 2 * len(held_out) + len(own), 0

    def answered(drafter: DiffusionDrafter, prompt: str) -> SpecDecodingStats:
        nonlocal done
        ids = encode_prompt(pair.tokenizer, prompt).to(pair.target.device)
        output = pair.target.generate(
            ids,
            custom_generate="hf_failfast",
            assistant_model=drafter,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
        )
        done += 1
        on_progress(done / total)
        stats: SpecDecodingStats = output["speculation"]
        return stats

    before = [answered(pair.drafter, prompt) for prompt in held_out]
    for prompt in own:
        answered(learner, prompt)
        learner.learn(max_steps=passes * math.ceil(max_new_tokens / LENGTH))
    after = [answered(pair.drafter, prompt) for prompt in held_out]
    stats = learner.statistics
    return learner, {
        "prompts": len(own),
        "held_out_prompts": len(held_out),
        "before": tokens_per_round(before),
        "after": tokens_per_round(after),
        "learned_steps": stats.learned_steps,
        "resets": stats.resets,
        "learning_seconds": round(stats.learning_seconds, 2),
        "ended": stats.ended,
    }


def tokens_per_round(answers: Sequence[SpecDecodingStats]) -> dict[str, float]:
    """Tokens per round, bonus token included, with the limits of their 95 % bootstrap interval over answers."""
    ratio, low, high = ratio_interval([each.emitted for each in answers], [each.rounds for each in answers])
    return {"tokens_per_round": round(ratio, 4), "low": round(low, 4), "high": round(high, 4)}
