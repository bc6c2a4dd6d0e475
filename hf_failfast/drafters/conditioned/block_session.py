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

    Before the target's first forward there are no hidden states to draft from: the first draft is empty. The slots
    hold only the context, whose states come with each verification; the last token has no states yet.

    features: states that the slots have not taken in yet, (1, n, ...). block_length: tokens that a pass drafts.
    """

    def __init__(
        self, cache: SlotCache, features: torch.Tensor, block_length: int, eos_token_ids: torch.Tensor | None
    ) -> None:
        super().__init__(eos_token_ids)
        self.cache = cache
        self.features = features
        self.block_length = block_length
        self.block: DraftTokens | None = None  # of the round's one pass

    @abstractmethod
    def draft_block(self, last: torch.Tensor) -> DraftTokens:
        """The tokens after the last one (1, 1). Leaves the context in the slots and no features."""

    def accept(self, counts: Sequence[int]) -> None:
        """Nothing to forget: the slots hold context only."""

    def inherit(self, previous: Self, num_tokens: int) -> int:
        self.cache.adopt(previous.cache, num_tokens)
        self.features = previous.features[:, : num_tokens - self.cache.get_seq_length()]
        return num_tokens

    def max_draft_length(self, num_tokens: int) -> int:
        known = self.cache.get_seq_length() + self.features.shape[1]
        return self.block_length if known == num_tokens - 1 else 0

    def draft_chunk(self, known: RaggedIds, length: int) -> Chunk:
        start = known.lengths[0] - self.lengths[0]
        if start == 0:
            self.block = self.draft_block(known.ids[:, -1:])
        assert self.block is not None
        ids, confidence, probs = self.block
        read = slice(start, start + length)
        return Chunk(ids[:, read], confidence[:, read], int(start == 0), None if probs is None else probs[:, read])
