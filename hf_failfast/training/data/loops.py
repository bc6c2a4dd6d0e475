"""Greedy answers fall into loops, which any drafter continues: they would fill training and flatter evaluation."""

import dataclasses
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from .shards import Example

LONGEST_PERIOD = 40  # tokens
RUN = 16  # tokens in a row that repeat those one period before
_AT_ONCE = 512


def without_loops(examples: Sequence[Example]) -> list[Example]:
    """The examples with their answers cut where they have begun to loop; the prompt does not count."""
    cut: list[Example] = []
    for start in range(0, len(examples), _AT_ONCE):
        chunk = examples[start : start + _AT_ONCE]
        tokens = pad_sequence([example.tokens for example in chunk], batch_first=True)
        prompts = torch.tensor([example.prompt_length for example in chunk])
        lengths = torch.tensor([len(example.tokens) for example in chunk])
        ends = loop_ends(tokens, prompts, lengths).tolist()
        cut += [_shortened(example, end) for example, end in zip(chunk, ends, strict=True)]
    return cut


def loop_ends(tokens: torch.Tensor, prompt_lengths: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """[n] the position after the first RUN tokens that repeat those one period before, for any period up to
    LONGEST_PERIOD; the sequence's length where none do. tokens [n, T] right-padded, the others [n]."""
    ends = lengths.clone()
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    for period in range(1, min(LONGEST_PERIOD, tokens.shape[1] - 1) + 1):
        repeats = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
        repeats[:, period:] = tokens[:, period:] == tokens[:, :-period]
        repeats &= (positions >= prompt_lengths[:, None] + period) & (positions < lengths[:, None])
        repeated = torch.nn.functional.pad(repeats.int().cumsum(dim=1), (RUN, 0))
        runs = repeated[:, RUN:] - repeated[:, :-RUN] == RUN
        first = torch.where(runs.any(dim=1), runs.int().argmax(dim=1) + 1, lengths)
        ends = torch.minimum(ends, first)
    return ends


def _shortened(example: Example, length: int) -> Example:
    if length == len(example.tokens):
        return example
    hidden = None if example.hidden is None else example.hidden[: length - example.prompt_length]
    return dataclasses.replace(example, tokens=example.tokens[:length], hidden=hidden)
