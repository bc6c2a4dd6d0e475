"""The text that was drafted, with what the target found likely: bounded, on the drafter's device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...engine.ragged import RaggedIds
from ...engine.runner import TopLogits

CONTEXT = 64  # tokens before the first one to learn from
LENGTH = 64  # tokens to learn from, per piece


@dataclass
class Piece:
    """A stretch of text, its newest tokens with the target's most likely ones in their places.

    ids: (CONTEXT + block + LENGTH,); `end` of them are filled. `first`: where the tokens to learn from begin.
    values, token_ids: (LENGTH, n), the target's, from `first` on.
    states: (tokens, width), the target's hidden states that the drafter reads; None: it reads none.
    learned: how many tokens to learn from there were when a step last used it. uses: number of such steps.
    """

    ids: torch.Tensor
    values: torch.Tensor
    token_ids: torch.Tensor
    states: torch.Tensor | None
    first: int
    end: int
    num_states: int = 0
    learned: int = 0
    uses: int = 0

    @property
    def count(self) -> int:
        """Tokens to learn from."""
        return self.end - self.first

    @property
    def is_full(self) -> bool:
        return self.count == len(self.values)


class Texts:
    """The newest pieces of all requests.

    max_pieces: how many are kept. top: of how many tokens the target's logits are kept. block: a multiple of it lies
        before each piece's first token, so that blocks keep their edges. width: of the hidden states, 0 for none.
    """

    def __init__(self, max_pieces: int, top: int, block: int, width: int) -> None:
        self.max_pieces, self.top, self.block, self.width = max_pieces, top, block, width
        self.pieces: list[Piece] = []
        self._lock = threading.Lock()

    def new_piece(self, context: torch.Tensor, states: torch.Tensor | None, dtype: torch.dtype) -> Piece:
        """A piece after the context (n,), whose tokens are those of a whole number of blocks and some more."""
        device, room = context.device, CONTEXT + self.block + LENGTH
        piece = Piece(
            torch.zeros(room, dtype=torch.long, device=device),
            torch.full((LENGTH, self.top), torch.finfo(dtype).min, dtype=dtype, device=device),
            torch.zeros(LENGTH, self.top, dtype=torch.long, device=device),
            None if states is None else torch.zeros(room, self.width, dtype=states.dtype, device=device),
            first=len(context),
            end=len(context),
        )
        piece.ids[: len(context)] = context
        if states is not None and piece.states is not None:
            piece.states[: len(states)] = states
            piece.num_states = len(states)
        with self._lock:
            self.pieces.append(piece)
            del self.pieces[: -self.max_pieces]
        return piece

    def snapshot(self) -> list[Piece]:
        with self._lock:
            return list(self.pieces)

    def clear(self) -> None:
        with self._lock:
            self.pieces.clear()


class Recorder:
    """Writes the text of one sequence into pieces.

    begin: the first token whose hidden states are known here; those of an earlier call may not be.
    """

    def __init__(self, texts: Texts, device: torch.device) -> None:
        self.texts = texts
        self.device = device
        self.begin = 0
        self._piece: Piece | None = None
        self._start = 0  # of the piece in the text
        self._states: torch.Tensor | None = None  # (1, m, width), of the last tokens before `_observed`
        self._observed = 0

    def inherit(self, num_tokens: int) -> None:
        """The states of the first `num_tokens` tokens were handed to an earlier session."""
        self.begin = self._observed = num_tokens

    def observe(self, states: torch.Tensor) -> None:
        """The hidden states (1, m, width) of the next tokens."""
        states = states.to(self.device)[0]
        piece = self._piece
        if piece is not None and piece.states is not None:
            at = self._observed - self._start
            room = max(min(len(states), len(piece.states) - at), 0)
            piece.states[at : at + room] = states[:room]
            piece.num_states = at + room
        kept = states if self._states is None else torch.cat([self._states.to(states), states])
        self._states = kept[-(CONTEXT + LENGTH + self.texts.block) :].clone()
        self._observed += len(states)

    def add(self, ids: torch.Tensor, gained: int, top: TopLogits) -> None:
        """The last `gained` tokens of ids (n,) are new; top: (gained, n) each."""
        length, done = len(ids), 0
        ids, top = ids.to(self.device), TopLogits(*(part.to(self.device) for part in top))
        while done < gained:
            piece = self._piece
            if piece is None or piece.is_full:
                piece = self._piece = self._new(ids[: length - gained + done], top.values.dtype)
            count = min(gained - done, len(piece.values) - piece.count)
            new, at = slice(done, done + count), piece.count
            piece.ids[piece.end : piece.end + count] = ids[length - gained :][new]
            width = top.values.shape[1]
            piece.values[at : at + count, :width] = top.values[new]
            piece.token_ids[at : at + count, :width] = top.token_ids[new]
            piece.end += count  # last: a step in another thread reads only what is before the end
            done += count

    def _new(self, before: torch.Tensor, dtype: torch.dtype) -> Piece:
        """A piece that continues the tokens before it."""
        first, block = len(before), self.texts.block
        self._start = max((first - CONTEXT) // block * block, self.begin, 0)
        states = None
        if self.texts.width:
            assert self._states is not None
            oldest = self._observed - len(self._states)
            self._start = max(self._start, oldest)
            states = self._states[self._start - oldest :]
        return self.texts.new_piece(before[self._start :], states, dtype)


def record(recorders: Sequence[Recorder], text: RaggedIds, gained: Sequence[int], top: TopLogits) -> None:
    """One round of a batch."""
    for row, (recorder, length, count) in enumerate(zip(recorders, text.lengths, gained, strict=True)):
        if count:
            own = TopLogits(top.values[row, :count], top.token_ids[row, :count])
            recorder.add(text.ids[row, :length], count, own)
