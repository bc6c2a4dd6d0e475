"""Rounds of a length policy on a made text, in simulated time at given costs."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hf_failfast import LengthPolicy
from hf_failfast.policies.base import RoundCosts
from hf_failfast.policies.goodput import Goodput, seconds_at

PROMPT = 64  # tokens

# Milliseconds. The first two were measured on a CPU core (SmolLM2-135M-Instruct and the bundled drafter, bfloat16 and
# float32); the others follow a GPU's roofline, where verification is nearly free.
COSTS = {
    "bfloat16": RoundCosts(
        ((2, 4.9), (7, 5.5), (16, 6.5), (32, 8.4), (64, 16.2)),
        ((0, 29.6), (1, 30.7), (3, 31.1), (7, 34.1), (16, 41.0), (32, 55.0)),
    ),
    "float32": RoundCosts(
        ((2, 9.6), (7, 11.3), (16, 13.4), (32, 20.0), (64, 25.5)),
        ((0, 38.2), (1, 54.8), (3, 54.8), (7, 65.9), (16, 94.3), (32, 141.8)),
    ),
    "slow drafter": RoundCosts(
        ((1, 15.0), (8, 17.0), (16, 19.0), (64, 25.0)), ((0, 34.6), (3, 36.2), (15, 45.2), (31, 59.1))
    ),
    "gpu": RoundCosts(((1, 1.2), (32, 1.3)), ((0, 3.8), (15, 3.9), (63, 4.1))),
}


@dataclass(frozen=True)
class Text:
    """A text: the drafter finds each token with some probability, and its confidence is that probability plus `bias`.

    likelihood: the mean probability; it varies over the text. is_useless: no drafted token is right.
    """

    likelihood: float
    bias: float = 0.0
    is_useless: bool = False

    def chunk(self, position: int, length: int) -> tuple[list[float], list[bool]]:
        """Confidence and correctness of the tokens from `position` on, drafted in one pass."""
        confidence, is_right = [], []
        for place in range(length):
            noise = random.Random(f"{self.likelihood} {position + place}")
            wave = 0.2 * ((position // 40) % 3 - 1)
            probability = self.likelihood + wave + noise.uniform(-0.3, 0.3) - 0.01 * place
            probability = min(max(probability, 0.02), 0.99)
            is_right.append(noise.random() < probability and not self.is_useless)
            confidence.append(min(max(probability + self.bias, 0.01), 0.999))
        return confidence, is_right


def ids(confidence: torch.Tensor, end: int = 0) -> torch.Tensor:
    """Token ids (B, n) with token 1 in place `end`, if any."""
    places = torch.arange(1, confidence.shape[1] + 1)
    return (places == end).long().expand_as(confidence)


# From what something takes on a quiet machine, and the time at which it begins, to what it takes.
Clock = Callable[[float, float], float]


def quiet(seconds: float, now: float) -> float:
    """Nothing else runs."""
    return seconds


def simulate(
    policy: LengthPolicy, text: Text, costs: RoundCosts, num_tokens: int, prompt: int = PROMPT, clock: Clock = quiet
) -> tuple[float, float]:
    """(speedup over plain rounds, share of plain rounds) in simulated time, after `prompt` tokens.

    clock: what the policy is told of the times; the speedup is that on a quiet machine."""
    policy.start(1, prompt)
    time, length, read, rounds, plain_rounds = 0.0, 0, -prompt, 0, 0
    while length < num_tokens:
        started = time
        right: list[bool] = []
        extend = policy.start_draft(1, prompt + length, num_tokens - length - 1)
        plain_rounds += not extend
        is_drafting = extend
        while extend:
            count = min(policy.chunk_length, policy.max_draft_length - len(right))
            confidence, is_right = text.chunk(length + len(right), count)
            time += seconds_at(costs.draft, length + len(right) - read - 1 + count)
            read = length + len(right)
            right += is_right
            can_extend = len(right) < policy.max_draft_length
            values = torch.tensor([confidence])
            (extend,) = policy.decide(ids(values), values, None, can_extend).extend
        if is_drafting:
            right = right[: policy.cut([len(right)])[0]]
        drafting, rest = time - started, seconds_at(costs.verify, len(right))
        accepted = min((right + [False]).index(False), num_tokens - length - 1)
        policy.observe([accepted])
        policy.spent(clock(drafting, started), clock(rest, time), [accepted + 1])
        time += rest
        length += accepted + 1
        rounds += 1
    return length * seconds_at(costs.verify, 0) / time, plain_rounds / rounds


def goodput(costs: RoundCosts) -> Goodput:
    return Goodput(lambda num_rows, num_tokens: costs)
