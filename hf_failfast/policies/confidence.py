"""Draft lengths by confidence: FailFast's rule, and the fixed length it is compared with."""

from collections.abc import Sequence
from typing import Self

import torch

from ..engine import kernels
from .base import ChunkRule, Drafter, LengthPolicy, MeasureCosts
from .bound import Bound


class ConfidenceThreshold(LengthPolicy):
    """FailFast (arXiv 2512.20573), Algorithm 1: extend while every token of the newest chunk has confidence >= tau.

    The authors' code tests all confidences recorded so far, look-ahead positions included; the paper's rule, used
    here, tests the newest chunk of the draft itself. NaN is not >= tau, so a broken drafter fails fast.
    """

    options = ("confidence_threshold", "chunk_length", "max_draft_length")
    bound: Bound | None = None  # None: every round drafts

    def __init__(self, config: ChunkRule) -> None:
        super().__init__(config.chunk_length, config.max_draft_length)
        self.confidence_threshold = config.confidence_threshold

    @classmethod
    def for_pair(cls, config: ChunkRule, drafter: Drafter, measure: MeasureCosts) -> Self:
        return cls(config)

    def start(self, num_rows: int, num_tokens: int) -> None:
        self.bound, self._is_first = Bound() if self.is_bounded else None, True

    def start_draft(self, num_rows: int, num_tokens: int, room: int) -> bool:
        return room > 0 and (self.bound is None or self.bound.allows(num_tokens))

    def spent(self, drafting: float, rest: float, num_emitted: Sequence[int]) -> None:
        if self.bound is not None:
            self.bound.add(drafting, rest, sum(num_emitted) / len(num_emitted), self._is_first)
            self._is_first = False

    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        return (confidence >= self.confidence_threshold).all(dim=-1)

    def _decided(
        self, token_ids: torch.Tensor, confidence: torch.Tensor, eos_token_ids: torch.Tensor | None
    ) -> Sequence[tuple[int, bool]]:
        return kernels.chunk_decision(token_ids, confidence, self.confidence_threshold, eos_token_ids)


class FixedLength(LengthPolicy):
    """Drafts of one chunk, never extended: the static baseline of the paper."""

    def __init__(self, length: int) -> None:
        super().__init__(length, length)

    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(confidence), dtype=torch.bool, device=confidence.device)
