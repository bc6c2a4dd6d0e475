"""Draft lengths by what drafts and acceptances came to of late: DiffuSpec's controller."""

from collections.abc import Sequence
from typing import Self

import torch

from .base import ChunkRule, Decision, Drafter, LengthPolicy, MeasureCosts, check_drafts_by_chunks, first_ends

MEMORY = 0.5  # of the averages


class DiffuSpecLength(LengthPolicy):
    """DiffuSpec's adaptive draft length (arXiv 2510.02358): drafts of one chunk, whose length follows two exponential
    averages of earlier rounds.

    The first is of the drafted tokens before an end of sequence, the second of the accepted ones. The next draft is as
    long as the first average, and `shortest` tokens longer where the second has caught up with it; never shorter than
    `shortest` and never longer than `longest`, with which a generation begins. The authors' numbers are 20 and 30, and
    10 for the growth. A batch has one length, which follows the means over its sequences.

    Depends on earlier rounds alone: nothing of a draft says how long it gets itself, so that drawn drafts stay exact.
    """

    options = ("chunk_length", "max_draft_length")

    def __init__(self, shortest: int, longest: int) -> None:
        super().__init__(longest, longest)
        self.shortest = min(shortest, longest)
        self.start(1, 0)

    @classmethod
    def for_pair(cls, config: ChunkRule, drafter: Drafter, measure: MeasureCosts) -> Self:
        check_drafts_by_chunks("diffuspec", drafter)
        return cls(config.chunk_length, config.max_draft_length)

    def start(self, num_rows: int, num_tokens: int) -> None:
        self.chunk_length = self.max_draft_length
        self._drafted: list[int] = []  # of the round, by sequence
        self._mean_drafted: float | None = None
        self._mean_accepted = 0.0

    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(confidence), dtype=torch.bool, device=confidence.device)

    def decide(
        self, token_ids: torch.Tensor, confidence: torch.Tensor, eos_token_ids: torch.Tensor | None, can_extend: bool
    ) -> Decision:
        num_rows, length = confidence.shape
        ends = [0] * num_rows
        if eos_token_ids is not None:
            ends = first_ends(token_ids, eos_token_ids).tolist()  # host sync: kept length
        self._drafted += [end - 1 if end else length for end in ends]
        return Decision([end or length for end in ends], [False] * num_rows, int(eos_token_ids is not None))

    def observe(self, num_accepted: Sequence[int]) -> None:
        if not self._drafted:
            return
        drafted, accepted = sum(self._drafted) / len(self._drafted), sum(num_accepted) / len(num_accepted)
        self._drafted = []
        if self._mean_drafted is None:
            self._mean_drafted, self._mean_accepted = drafted, accepted
        else:
            self._mean_drafted += (1 - MEMORY) * (drafted - self._mean_drafted)
            self._mean_accepted += (1 - MEMORY) * (accepted - self._mean_accepted)
        grown = self.shortest if self._mean_accepted >= self._mean_drafted else 0
        self.chunk_length = min(max(int(self._mean_drafted) + grown, self.shortest), self.max_draft_length)
