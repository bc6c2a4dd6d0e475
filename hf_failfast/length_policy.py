"""When a draft is extended by another chunk."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .config import FailFastConfig


class Decision(NamedTuple):
    """What becomes of the newest chunk, per row, and the transfers to the host that it took to know."""

    kept: list[int]  # tokens of the chunk
    extend: list[bool]
    host_reads: int


class LengthPolicy(ABC):
    """Decides on confidence alone, never on which token was drafted: otherwise sampling would not be exact.

    For a draft that is drawn from a distribution q this means: whether a token is verified may depend on the
    confidences of its own chunk up to its own place and of the chunks before, which were there before it was drawn.
    It may depend neither on the token itself nor on the confidences of later chunks: the drafter made those knowing
    the token, and a cut by them would favour some tokens over others. So `cut` may stop a draft at a place only for
    what was known there.

    A policy serves one generation. One that learns overrides the hooks: `start`, then in every round `start_draft`
    and `cut` around the drafting and `observe` after the verification.
    """

    def __init__(self, chunk_length: int, max_draft_length: int) -> None:
        self.chunk_length = chunk_length
        self.max_draft_length = max_draft_length

    @abstractmethod
    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        """Whether another chunk follows in each row: bools (B,) on the device of `confidence` (B, n), the newest
        chunk's."""

    def start(self, num_rows: int, num_tokens: int) -> None:  # noqa: B027
        """A generation begins, of so many rows, the longest of which has so many tokens."""

    def start_draft(self, num_rows: int, num_tokens: int, room: int) -> bool:
        """Whether to draft in this round, for so many rows, the longest of which has so many tokens.

        room: the longest draft that is possible.
        """
        return room > 0

    def decide(self, confidence: torch.Tensor, ends: torch.Tensor | None, can_extend: bool) -> Decision:
        """What becomes of the newest chunk with the given confidence (B, n), in one transfer to the host.

        ends: tokens up to the first end of sequence, 0 where there is none, (B,); None where no token ends a text.
        """
        num_rows, length = confidence.shape
        if ends is None and not can_extend:
            return Decision([length] * num_rows, [False] * num_rows, 0)
        extend = self.should_extend(confidence).expand(num_rows)
        if ends is None:
            return Decision([length] * num_rows, extend.tolist(), 1)  # host sync: extend
        rows = torch.stack([ends.long(), extend.long()], dim=1).tolist()  # host sync: kept length and extend
        extends = [bool(go) and can_extend and not end for end, go in rows]
        return Decision([end or length for end, _ in rows], extends, 1)

    def cut(self, lengths: Sequence[int]) -> list[int]:
        """How many tokens of each row's draft the target shall verify, at most `lengths`."""
        return list(lengths)

    def observe(self, num_accepted: Sequence[int]) -> None:  # noqa: B027
        """The target has confirmed so many tokens of each row's draft."""


class ConfidenceThreshold(LengthPolicy):
    """FailFast (arXiv 2512.20573), Algorithm 1: extend while every token of the newest chunk has confidence >= tau.

    The authors' code tests all confidences recorded so far, look-ahead positions included; the paper's rule, used
    here, tests the newest chunk of the draft itself. NaN is not >= tau, so a broken drafter fails fast.
    """

    def __init__(self, config: FailFastConfig) -> None:
        super().__init__(config.chunk_length, config.max_draft_length)
        self.confidence_threshold = config.confidence_threshold

    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        return (confidence >= self.confidence_threshold).all(dim=-1)


class FixedLength(LengthPolicy):
    """Drafts of one chunk, never extended: the static baseline of the paper."""

    def __init__(self, length: int) -> None:
        super().__init__(length, length)

    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(confidence), dtype=torch.bool, device=confidence.device)
