"""One block per round, from the hidden states that the target's last verification left."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import torch

from ...engine.ragged import RaggedIds
from ...engine.slot_cache import SlotCache
from ..chunks import Chunk, ChunkedSession
from ..denoising import DraftTokens


class BlockSession(ChunkedSession):
    """Drafts a whole block in one pass and hands it out chunk by chunk: FailFast's length rule works inside the block.

    Before the target's first forward there are no hidden states to draft from: the first draft is empty. Between two
    drafts the slots hold only the context, whose states come with each verification; the last token has no states yet.
    What the drafter sees of a text begins with the first token whose states it has: the target's cache may have held
    tokens before it, or it is where a window begins. There is position 0.

    features: states that the slots have not taken in yet, (1, n, ...). block_length: tokens that a pass drafts.
    offset: tokens of the text before the first one that the drafter sees.
    """

    def __init__(
        self,
        cache: SlotCache,
        features: torch.Tensor,
        block_length: int,
        eos_token_ids: torch.Tensor | None,
        window: int = 0,
    ) -> None:
        super().__init__(eos_token_ids, window)
        self.cache = cache
        self.features = features
        self.block_length = block_length
        self.offset = 0
        self.block: DraftTokens | None = None  # of the last pass
        self.block_start = 0  # draft tokens before the block

    @abstractmethod
    def draft_block(self, known: torch.Tensor) -> DraftTokens:
        """The `block_length` tokens after the last one and those drafted so far, (1, 1 + n). Leaves the context in the
        slots and no features."""

    def accept(self, counts: Sequence[int]) -> None:
        """Nothing to forget: the slots hold context only."""

    def inherit(self, previous: Self, num_tokens: int, rows: tuple[int, int] = (0, 0)) -> int:
        seen = num_tokens - previous.offset
        if seen <= 0:
            return 0
        self.offset = previous.offset
        self.cache.adopt(previous.cache, seen)
        self.features = previous.features[:, : seen - self.cache.get_seq_length()]
        return num_tokens

    @property
    def num_states(self) -> int:
        """Tokens whose states the drafter has."""
        return self.cache.get_seq_length() + self.features.shape[1]

    def room(self, num_seen: int) -> int:
        """The longest draft after `num_seen` tokens that the drafter sees."""
        return self.block_length

    def max_draft_length(self, num_tokens: int) -> int:
        num_seen = num_tokens - self.offset
        return self.room(num_seen) if self.num_states == num_seen - 1 > 0 else 0

    def draft_chunk(self, known: RaggedIds, length: int) -> Chunk:
        drafted = known.lengths[0] - self.lengths[0]
        end = 0 if drafted == 0 or self.block is None else self.block_start + self.block.token_ids.shape[1]
        passes = 0
        if drafted + length > end:
            self.block = self.draft_block(known.ids[:, self.lengths[0] - 1 : known.lengths[0]])
            self.block_start, passes = drafted, 1
        assert self.block is not None
        ids, confidence, probs, alternatives = self.block
        read = slice(drafted - self.block_start, drafted - self.block_start + length)
        return Chunk(
            ids[:, read],
            confidence[:, read],
            passes,
            None if probs is None else probs[:, read],
            None if alternatives is None else alternatives.map(lambda values: values[:, read]),
        )

    def _seen(self, text: RaggedIds) -> RaggedIds:
        """The whole text: a pass reads no more of it than its end."""
        length = text.lengths[0]
        if self.window and length - self.offset > self.window:
            self.restart([0])
        if not self.cache.get_seq_length():
            self.offset = length - 1 - self.features.shape[1]
        return text
