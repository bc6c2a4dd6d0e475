"""Examples and the shards that keep them.

A shard is one safetensors file:
    tokens          int32    [sum of prompt and answer lengths]  the sequences, one after the other
    prompt_lengths  int32    [n]
    answer_lengths  int32    [n]  the end-of-sequence token included
    sampled         bool     [n]  the answer was drawn and is not greedy
    hidden          bfloat16 [sum of answer lengths, hidden size]  the normalised final state that predicts each token
                             (absent if states are not stored)
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..atomic_files import replacing

HELD_OUT_ONE_IN = 32


@dataclass(frozen=True)
class Example:
    """One sequence: tokens [n] long, its first `prompt_length` the prompt; hidden [n - prompt_length, hidden size]."""

    tokens: torch.Tensor
    prompt_length: int
    hidden: torch.Tensor | None
    sampled: bool = False

    @property
    def answer_length(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def held_out(self) -> bool:
        """Depends on the prompt alone, so no prompt is on both sides whatever the order of the shards."""
        digest = hashlib.sha256(self.tokens[: self.prompt_length].numpy().tobytes()).digest()
        return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def save_shard(path: Path, examples: list[Example]) -> None:
    """Writes one shard; a file under its final name is always whole."""
    tensors = {
        "tokens": torch.cat([example.tokens for example in examples]).to(torch.int32),
        "prompt_lengths": torch.tensor([example.prompt_length for example in examples], dtype=torch.int32),
        "answer_lengths": torch.tensor([example.answer_length for example in examples], dtype=torch.int32),
        "sampled": torch.tensor([example.sampled for example in examples]),
    }
    states = [example.hidden for example in examples if example.hidden is not None]
    if states:
        tensors["hidden"] = torch.cat(states)
    with replacing(path) as partial:
        save_file(tensors, partial)


def load_shard(path: Path) -> Iterator[Example]:
    shard = load_file(path)
    prompts, answers = shard["prompt_lengths"].tolist(), shard["answer_lengths"].tolist()
    lengths = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    hidden = shard["hidden"].split(answers) if "hidden" in shard else [None] * len(answers)
    sampled = shard["sampled"].tolist() if "sampled" in shard else [False] * len(answers)
    rows = zip(shard["tokens"].long().split(lengths), prompts, hidden, sampled, strict=True)
    return (Example(*row) for row in rows)
