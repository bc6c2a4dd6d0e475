"""From examples to packed batches: which sequences, which anchors, which label and target state for every row."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from .canvases import Canvases
from .config import CanvasAttention
from .data.shards import Example
from .losses import IGNORE

POOL_BATCHES = 16


@dataclass(frozen=True)
class Batch:
    """Row r of a sequence predicts token r + 1; `answer` [batch, T + K] is True where that is an answer token.

    labels [batch, T + K] index the draft vocabulary and wanted [batch, T + K, hidden] are the target's states; where
    `answer` is False they are IGNORE and zero. All are K longer than the tokens: a canvas may reach past their end.
    wanted is None where the data holds no states, features [batch, T, layers, hidden] where the drafter reads none;
    sampled [batch] marks answers that were drawn and are not greedy.
    """

    canvases: Canvases
    labels: torch.Tensor
    answer: torch.Tensor
    sampled: torch.Tensor
    wanted: torch.Tensor | None = None
    features: torch.Tensor | None = None

    def drafted(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [batch, T + K, ...] -> [batch, A, K, ...], those that predict positions 1 .. K of every canvas."""
        offsets = torch.arange(self.canvases.canvas_length, device=rows.device)
        index = self.canvases.anchors[:, :, None] + offsets
        return rows[torch.arange(len(rows), device=rows.device)[:, None, None], index]


def step_generator(seed: int, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on its arguments alone, so a resumed run needs no saved generator state."""
    mixed = seed
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return torch.Generator(device).manual_seed(mixed)


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


@dataclass(frozen=True)
class CanvasPlan:
    """Where canvases lie: `anchors` per sequence, each of `canvas_length` draft positions; and of how many tokens they
    see the text, at most `window` (0: all)."""

    attention: CanvasAttention
    canvas_length: int
    anchors: int
    extended: float = 0.0  # share of the causal canvases that go on with a draft: their first tokens are known
    window: int = 0

    def random(self, examples: Sequence[Example], generator: torch.Generator) -> torch.Tensor:
        """[batch, A] positions whose canvas holds an answer token, uniform and with replacement."""
        first, count = self._choices(examples)
        drawn = torch.rand(len(examples), self.anchors, generator=generator)
        return self._position(first + (drawn * count).long())

    def even(self, examples: Sequence[Example]) -> torch.Tensor:
        """[batch, A] fixed anchors, evenly spaced; whole canvases wherever the answer is long enough."""
        first, count = self._choices(examples)
        if self.attention == "block_causal":  # the first and the last block may hold other tokens too
            first, room = first + (count > 2), (count - 3).clamp_min(0)
        else:
            room = (count - self.canvas_length).clamp_min(0)
        return self._position(first + (torch.linspace(0, 1, self.anchors) * room).long())

    def drawn(self, examples: Sequence[Example], generator: torch.Generator) -> Canvases:
        """At random anchors; in blocks some tokens are revealed."""
        return self._canvases(examples, self.random(examples, generator), generator)

    def fixed(self, examples: Sequence[Example]) -> Canvases:
        """At the anchors of `even`."""
        return self._canvases(examples, self.even(examples), None)

    def every(self, examples: Sequence[Example]) -> tuple[Canvases, torch.Tensor]:
        """A canvas after each token of the answers but the last, [batch, longest answer]: canvas i drafts after i
        tokens. The second value is the first position of each canvas that it drafts: in blocks a canvas is the block
        that the next token lies in, and the tokens before that one are revealed."""
        last = torch.tensor([len(e.tokens) - 1 for e in examples])[:, None]
        known = torch.tensor([e.prompt_length - 1 for e in examples])[:, None]
        known = (known + torch.arange(max(e.answer_length for e in examples))).minimum(last)
        tokens = padded_tokens(examples)
        if self.attention != "block_causal":
            return self._over(tokens, known), torch.zeros_like(known)
        # The first block's anchor is -1: what would draft its first token, which no answer begins with.
        anchors = (known + 1) // self.canvas_length * self.canvas_length - 1
        canvases = self._over(tokens, anchors)
        revealed = canvases.canvas_positions() <= known[..., None]
        return dataclasses.replace(canvases, revealed=revealed), known - anchors

    def _canvases(
        self, examples: Sequence[Example], anchors: torch.Tensor, generator: torch.Generator | None
    ) -> Canvases:
        tokens = padded_tokens(examples)
        anchors = anchors.clamp(max=tokens.shape[1] - 1)
        canvases = self._over(tokens, anchors)
        if self.attention == "block_causal":
            return reveal(examples, canvases, generator)
        if self.extended == 0 or generator is None:
            return canvases
        is_extended = torch.rand(anchors.shape, generator=generator) < self.extended
        known = (torch.rand(anchors.shape, generator=generator) * canvases.rows_per_canvas).long() * is_extended
        return dataclasses.replace(canvases, revealed=torch.arange(canvases.rows_per_canvas) < known[..., None])

    def _over(self, tokens: torch.Tensor, anchors: torch.Tensor) -> Canvases:
        return Canvases(tokens, anchors, self.canvas_length, self.attention, window=self.window)

    def _choices(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """First choice and number of choices, each [batch, 1]: positions, or blocks other than the first one."""
        if self.attention != "block_causal":
            first, end = [e.prompt_length - 1 for e in examples], [len(e.tokens) - 1 for e in examples]
        else:
            first = [max(e.prompt_length // self.canvas_length, 1) for e in examples]
            end = [(len(e.tokens) - 1) // self.canvas_length + 1 for e in examples]
        starts, ends = torch.tensor(first)[:, None], torch.tensor(end)[:, None]
        return starts, (ends - starts).clamp_min(1)

    def _position(self, choices: torch.Tensor) -> torch.Tensor:
        return choices if self.attention != "block_causal" else choices * self.canvas_length - 1


def padded_tokens(examples: Sequence[Example]) -> torch.Tensor:
    """[batch, T], padded on the right with zeros."""
    return pad_sequence([example.tokens for example in examples], batch_first=True)


def reveal(examples: Sequence[Example], canvases: Canvases, generator: torch.Generator | None) -> Canvases:
    """The canvases with the prompt revealed, and with a generator each answer token too, at a rate of its canvas's own
    between 0 and 1 (masked diffusion; Fast-dLLM v2, arXiv 2509.26328)."""
    positions = canvases.canvas_positions()
    revealed = positions < torch.tensor([e.prompt_length for e in examples])[:, None, None]
    if generator is not None:
        rate = torch.rand(*positions.shape[:2], 1, generator=generator)
        revealed |= torch.rand(positions.shape, generator=generator) < rate
    revealed &= positions < torch.tensor([len(e.tokens) for e in examples])[:, None, None]
    return dataclasses.replace(canvases, revealed=revealed)


def collate(
    examples: Sequence[Example],
    plan: CanvasPlan,
    draft_ids: torch.Tensor,
    generator: torch.Generator | None = None,
) -> Batch:
    """`aligned` with canvases that are drawn, or without a generator the fixed ones of evaluation."""
    canvases = plan.fixed(examples) if generator is None else plan.drawn(examples, generator)
    return aligned(examples, canvases, draft_ids)


def aligned(examples: Sequence[Example], canvases: Canvases, draft_ids: torch.Tensor) -> Batch:
    """Labels and states for every row of the canvases; `draft_ids` [vocabulary] maps a token to its draft vocabulary
    index or IGNORE."""
    tokens, device = canvases.tokens, canvases.tokens.device
    first = torch.tensor([example.prompt_length - 1 for example in examples], device=device)[:, None]
    end = torch.tensor([len(example.tokens) - 1 for example in examples], device=device)[:, None]
    rows = torch.arange(tokens.shape[1] + canvases.canvas_length, device=device)
    answer = (rows >= first) & (rows < end)
    following = torch.nn.functional.pad(tokens[:, 1:], (0, canvases.canvas_length + 1))
    labels = draft_ids[following].masked_fill(~answer, IGNORE)
    sampled = torch.tensor([example.sampled for example in examples], device=device)
    return Batch(canvases, labels, answer, sampled, _wanted(examples, answer))


def _wanted(examples: Sequence[Example], answer: torch.Tensor) -> torch.Tensor | None:
    """[batch, length, hidden] the stored states where `answer` [batch, length] is True; None if none are stored."""
    states = [example.hidden for example in examples if example.hidden is not None]
    if len(states) < len(examples):
        return None
    wanted = states[0].new_zeros(*answer.shape, states[0].shape[-1], device=answer.device)
    wanted[answer] = torch.cat(states).to(answer.device)
    return wanted


def draft_index(draft_vocabulary: torch.Tensor | None, vocabulary: int) -> torch.Tensor:
    """[vocabulary] token id -> index in the draft vocabulary, IGNORE outside of it."""
    if draft_vocabulary is None:
        return torch.arange(vocabulary)
    index = torch.full((vocabulary,), IGNORE)
    index[draft_vocabulary] = torch.arange(len(draft_vocabulary))
    return index
