"""When a draft is extended by another chunk."""

from abc import ABC, abstractmethod

import torch

from .config import FailFastConfig


class LengthPolicy(ABC):
    """Decides on confidence alone, never on which token was drafted: otherwise sampling would not be exact."""

    def __init__(self, chunk_length: int, max_draft_length: int) -> None:
        self.chunk_length = chunk_length
        self.max_draft_length = max_draft_length

    @abstractmethod
    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        """Whether another chunk follows, as a bool scalar on the device of `confidence` (1, n), the newest chunk's."""


class ConfidenceThreshold(LengthPolicy):
    """FailFast (arXiv 2512.20573), Algorithm 1: extend while every token of the newest chunk has confidence >= tau.

    The authors' code tests all confidences recorded so far, look-ahead positions included; the paper's rule, used
    here, tests the newest chunk of the draft itself. NaN is not >= tau, so a broken drafter fails fast.
    """

    def __init__(self, config: FailFastConfig) -> None:
        super().__init__(config.chunk_length, config.max_draft_length)
        self.confidence_threshold = config.confidence_threshold

    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        return (confidence >= self.confidence_threshold).all()


class FixedLength(LengthPolicy):
    """Drafts of one chunk, never extended: the static baseline of the paper."""

    def __init__(self, length: int) -> None:
        super().__init__(length, length)

    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        return torch.zeros((), dtype=torch.bool, device=confidence.device)
