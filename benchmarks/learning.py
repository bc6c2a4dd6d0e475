"""What learning does to a drafter: tokens per round on prompts of one kind, with and without, and on another kind.

    python benchmarks/learning.py

The target answers every prompt once, greedily. Its text then stands for it: rounds of decoding are played on it with
the drafter's own sessions, and give the tokens per round of real greedy decoding without the time of its forwards.
Steps are taken between requests. What a step costs is measured beside real rounds.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from store import RESULTS, store
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

import hf_failfast
from hf_failfast import Learning
from hf_failfast.drafters import DiffusionDrafter, DraftRequest
from hf_failfast.engine.ragged import RaggedIds
from hf_failfast.engine.runner import TopLogits
from hf_failfast.measure.bootstrap import ratio_interval
from hf_failfast.measure.provenance import provenance
from hf_failfast.pairs import SMOLLM2, encode_prompt, load_smollm2
from hf_failfast.policies.confidence import ConfidenceThreshold

TASKS = (
    "returns the sum of the digits of a number",
    "counts the vowels in a string",
    "reverses the words of a sentence",
    "merges two sorted lists",
    "finds the largest element of a list",
    "checks whether a string is a palindrome",
    "removes duplicates from a list",
    "computes the factorial of a number",
    "converts Celsius to Fahrenheit",
    "counts how often each word occurs in a text",
    "returns the n-th Fibonacci number",
    "flattens a nested list",
    "sorts a list of dictionaries by a key",
    "finds the common elements of two lists",
    "checks whether two strings are anagrams",
    "computes the greatest common divisor of two numbers",
    "reads a CSV file and returns its rows",
    "writes a list of lines to a file",
    "validates an email address",
    "generates a random password",
    "transposes a matrix",
    "multiplies two matrices",
    "finds the second largest number in a list",
    "rotates a list by k positions",
    "computes the average of a list of numbers",
    "splits a list into chunks of a given size",
    "counts the lines of a file",
    "finds all prime numbers up to n",
    "converts a decimal number to binary",
    "implements binary search",
    "implements bubble sort",
    "computes the median of a list",
    "returns the longest word of a sentence",
    "capitalizes the first letter of each word",
    "checks whether a year is a leap year",
    "computes the power of a number with recursion",
    "finds the intersection of two sets",
    "parses a date in the format YYYY-MM-DD",
    "implements a stack with push and pop",
    "groups words by their first letter",
)
OTHERS = (
    "Why is the sky blue?",
    "Describe how bread is made.",
    "What are the benefits of regular exercise?",
    "Write a short story about a lighthouse keeper.",
    "Explain how a bicycle stays upright.",
    "Give three tips for learning a new language.",
    "What caused the fall of the Roman Empire?",
    "Describe a day at the beach.",
    "How do vaccines work?",
    "Write an email asking for a meeting next week.",
    "What is the difference between weather and climate?",
    "Suggest a healthy breakfast.",
)
TOP = 16
BATCH = 8


@dataclass(frozen=True)
class Answer:
    """A greedy answer: ids (n,) with the prompt, and the target's most likely tokens (m, TOP) in its places."""

    ids: torch.Tensor
    prompt_length: int
    top: TopLogits


@torch.no_grad()
def answered(target: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int) -> list[Answer]:
    """Greedy answers, each up to its end of sequence, in one batch."""
    own = [encode_prompt(tokenizer, prompt)[0] for prompt in prompts]
    ids = pad_sequence(own, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(each) for each in own], batch_first=True, padding_side="left")
    output = target.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    top = torch.stack(output.logits, dim=1).topk(TOP)
    answers = []
    for row, prompt in enumerate(own):
        new = output.sequences[row, ids.shape[1] :]
        is_end = new == target.generation_config.eos_token_id
        length = int(is_end.long().argmax()) + 1 if bool(is_end.any()) else len(new)
        kept = TopLogits(top.values[row, :length], top.indices[row, :length])
        answers.append(Answer(torch.cat([prompt, new[:length]]), len(prompt), kept))
    return answers


@torch.no_grad()
def rounds(target: Any, drafter: DiffusionDrafter, given: Answer) -> tuple[int, int]:
    """(tokens, rounds) of greedy decoding of this answer, as the loop would make them."""
    policy = ConfidenceThreshold(drafter.config)
    end, length, count = len(given.ids), given.prompt_length, 0
    session = drafter.start(DraftRequest(target, end))
    policy.start(1, length)
    while length < end:
        draft = session.draft(RaggedIds.full(given.ids[None, :length]), policy, [end - length - 1])
        own = given.ids[length : length + len(draft)]
        accepted = int((draft.token_ids[0, : len(own)] == own).long().cumprod(dim=0).sum())
        start = length - given.prompt_length
        length += accepted + 1
        session.accept([accepted])
        policy.observe([accepted])
        if session.top_logits:
            new = TopLogits(*(part[None, start : start + accepted + 1] for part in given.top))
            session.learn(RaggedIds.full(given.ids[None, :length]), [accepted + 1], new)
        count += 1
    return end - given.prompt_length, count


def figure(played: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Tokens per round, with its 95 % bootstrap interval over answers."""
    ratio, low, high = ratio_interval(*zip(*played, strict=True))
    return {"tokens_per_round": round(ratio, 3), "low": round(low, 3), "high": round(high, 3)}


def gain(on: Sequence[tuple[int, int]], off: Sequence[tuple[int, int]]) -> dict[str, float]:
    """How many times the tokens per round of `off`, answer by answer the same text, with its interval."""
    ratio, low, high = ratio_interval([count for _, count in off], [count for _, count in on])
    return {"ratio": round(ratio, 3), "low": round(low, 3), "high": round(high, 3)}


def main(
    output: Path = RESULTS / "learning.json",
    max_new_tokens: int = 96,
    limit: Annotated[int, typer.Option(help="Prompts of the kind that is learned from.")] = len(TASKS),
    learning_rate: float = 3e-4,
    steps: Annotated[int, typer.Option(help="Steps after each answer.")] = 2,
) -> None:
    logging.disable_progress_bar()
    target, tokenizer = load_smollm2(torch.float32)
    packed = hf_failfast.prepack(target)

    def load() -> DiffusionDrafter:
        return hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER, dtype=torch.float32)

    kinds = {
        "code": [f"Write a Python function that {task}." for task in TASKS[:limit]],
        "other": list(OTHERS[: math.ceil(limit * len(OTHERS) / len(TASKS))]),
    }
    answers = {
        kind: [
            each
            for start in range(0, len(prompts), BATCH)
            for each in answered(target, tokenizer, prompts[start : start + BATCH], max_new_tokens)
        ]
        for kind, prompts in kinds.items()
    }
    fixed = load()
    off = {kind: [rounds(target, fixed, each) for each in given] for kind, given in answers.items()}
    learner = Learning(load(), learning_share="between requests", learning_rate=learning_rate)
    on = []
    for given in answers["code"]:
        on.append(rounds(target, learner, given))
        learner.learn(max_steps=steps)
    others = [rounds(target, learner.drafter, given) for given in answers["other"]]
    half = len(on) // 2
    stats = learner.statistics
    document = {
        "target": SMOLLM2,
        "drafter": hf_failfast.BUNDLED_DRAFTER.name,
        "max_new_tokens": max_new_tokens,
        "learning_rate": learning_rate,
        "code": {
            "prompts": len(on),
            "without": figure(off["code"]),
            "with": figure(on),
            "gain": gain(on, off["code"]),
            "gain_first_half": gain(on[:half], off["code"][:half]),
            "gain_second_half": gain(on[half:], off["code"][half:]),
        },
        "other": {
            "prompts": len(others),
            "without": figure(off["other"]),
            "after_learning_code": figure(others),
            "gain": gain(others, off["other"]),
        },
        "learning": stats.as_dict() | {"steps_per_answer": steps},
        "cost": cost(target, load(), learner, answers["code"], kinds["code"], tokenizer, max_new_tokens),
        **provenance(),
    }
    packed.undo()
    store(document, output)


def cost(
    target: Any,
    fixed: DiffusionDrafter,
    learner: Learning,
    answers: Sequence[Answer],
    prompts: Sequence[str],
    tokenizer: Any,
    max_new_tokens: int,
    repeats: int = 3,
) -> dict[str, float]:
    """Milliseconds of a round of real decoding and of a step, taken in turn, medians; and the share of the time that
    a step after every n rounds takes."""
    round_ms, step_ms = [], []
    for prompt, given in list(zip(prompts, answers, strict=True))[:repeats]:
        stats = target.generate(
            encode_prompt(tokenizer, prompt),
            custom_generate="hf_failfast",
            assistant_model=fixed,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
        )["speculation"]
        seconds = stats.draft_seconds + stats.verify_seconds + stats.other_seconds
        round_ms.append(1000 * seconds / stats.rounds)
        rounds(target, learner, given)
        before = learner.statistics.learning_seconds
        taken = learner.learn(max_steps=2)
        step_ms.append(1000 * (learner.statistics.learning_seconds - before) / taken)
    step, one = statistics.median(step_ms), statistics.median(round_ms)
    return {
        "round_ms": round(one, 1),
        "step_ms": round(step, 1),
        "rounds_per_step": round(step / one, 2),
        "rounds_between_steps_at_a_tenth": round(10 * step / one, 1),
    }


if __name__ == "__main__":
    typer.run(main)
