"""From examples to packed batches: which sequences, which anchors, which label and target state for every row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from .data import Example
from .losses import IGNORE
from .model import Canvases

POOL_BATCHES = 16


@dataclass(frozen=True)
class Batch:
    """Row r of a sequence predicts token r + 1; `answer` [batch, T + K] is True where that is an answer token.

    labels [batch, T + K] index the draft vocabulary and wanted [batch, T + K, hidden] are the target's states; where
    `answer` is False they are IGNORE and zero. All are K longer than the tokens: a canvas may reach past their end.
    """

    canvases: Canvases
    labels: torch.Tensor
    wanted: torch.Tensor
    answer: torch.Tensor

    def canvas_rows(self) -> torch.Tensor:
        """[batch, A * K]: for every anchor the rows of draft positions 1 .. K."""
        offsets = torch.arange(self.canvases.canvas_length, device=self.labels.device)
        return (self.canvases.anchors[:, :, None] + offsets).flatten(1)


def step_generator(seed: int, *numbers: int) -> torch.Generator:
    """A generator that depends on its arguments alone, so a resumed run needs no saved generator state."""
    mixed = seed
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def batch_indices(lengths: Sequence[int], batch_size: int, seed: int, step: int) -> list[int]:
    """The examples of one step: every epoch is its own permutation, and its last short batch is left out.

    Batches are cut from pools sorted by length: padding is a seventh of a step's rows otherwise.
    """
    per_epoch = max(len(lengths) // batch_size, 1)
    epoch, number = divmod(step, per_epoch)
    generator = step_generator(seed, epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()[: per_epoch * batch_size]
    pool = POOL_BATCHES * batch_size
    pools = [sorted(order[i : i + pool], key=lengths.__getitem__) for i in range(0, len(order), pool)]
    order = [index for members in pools for index in members]
    start = int(torch.randperm(per_epoch, generator=generator)[number]) * batch_size
    return order[start : start + batch_size]


def random_anchors(examples: Sequence[Example], count: int, generator: torch.Generator) -> torch.Tensor:
    """[batch, count] positions that predict an answer token, uniform and with replacement."""
    first = torch.tensor([[example.prompt_length - 1] for example in examples])
    answers = torch.tensor([[len(example.hidden)] for example in examples])
    drawn = torch.rand(len(examples), count, generator=generator)
    return first + (drawn * answers).long()


def even_anchors(examples: Sequence[Example], count: int, canvas_length: int) -> torch.Tensor:
    """[batch, count] fixed anchors, evenly spaced; whole canvases wherever the answer is long enough."""
    first = torch.tensor([[example.prompt_length - 1] for example in examples])
    room = torch.tensor([[len(example.hidden) - canvas_length] for example in examples]).clamp_min(0)
    return first + (torch.linspace(0, 1, count) * room).long()


def collate(examples: Sequence[Example], anchors: torch.Tensor, canvas_length: int, draft_ids: torch.Tensor) -> Batch:
    """Pads and aligns; `draft_ids` [vocabulary] maps a token to its draft vocabulary index or IGNORE."""
    tokens = pad_sequence([example.tokens for example in examples], batch_first=True)
    batch, clean = tokens.shape
    hidden_size = examples[0].hidden.shape[-1]
    labels = torch.full((batch, clean + canvas_length), IGNORE)
    wanted = torch.zeros(batch, clean + canvas_length, hidden_size, dtype=examples[0].hidden.dtype)
    answer = torch.zeros(batch, clean + canvas_length, dtype=torch.bool)
    for row, example in enumerate(examples):
        rows = slice(example.prompt_length - 1, len(example.tokens) - 1)
        labels[row, rows] = draft_ids[example.tokens[example.prompt_length :]]
        wanted[row, rows] = example.hidden
        answer[row, rows] = True
    return Batch(Canvases(tokens, anchors, canvas_length), labels, wanted, answer)


def draft_index(draft_vocabulary: torch.Tensor | None, vocabulary: int) -> torch.Tensor:
    """[vocabulary] token id -> index in the draft vocabulary, IGNORE outside of it."""
    if draft_vocabulary is None:
        return torch.arange(vocabulary)
    index = torch.full((vocabulary,), IGNORE)
    index[draft_vocabulary] = torch.arange(len(draft_vocabulary))
    return index


def to_device(batch: Batch, device: torch.device) -> Batch:
    canvases = batch.canvases
    moved = Canvases(canvases.tokens.to(device), canvases.anchors.to(device), canvases.canvas_length)
    return Batch(moved, batch.labels.to(device), batch.wanted.to(device), batch.answer.to(device))
