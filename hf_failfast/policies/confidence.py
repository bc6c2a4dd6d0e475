"""Draft lengths by confidence: FailFast's rule, and the fixed length it is compared with."""

from collections.abc import Sequence
from typing import Self

import torch

from ..engine import kernels
from .base import Account, ChunkRule, Drafter, LengthPolicy, MeasureCosts

# A plain round is measured after the first drafted one, unless drafted ones make SURE_GAIN tokens each, which is more
# than a verification could cost; and again when the text has grown by half, and by at least GROWTH tokens.
SURE_GAIN, GROWTH = 4.0, 256
LONGEST_OUTLIER = 2.0  # in times of the shortest round: longer ones were disturbed


class Pace:
    """The seconds of a kind of round, without outliers: a mean that forgets, and the longest ones of late."""

    def __init__(self) -> None:
        self.shortest = self.mean = self.longest = 0.0

    def add(self, seconds: float) -> float:
        """Takes a round in; returns its seconds without what was probably a disturbance."""
        self.shortest = min(seconds, self.shortest or seconds)
        seconds = min(seconds, LONGEST_OUTLIER * self.shortest)
        self.mean += 0.2 * (seconds - self.mean) if self.mean else seconds
        self.longest = max(seconds, self.longest + 0.2 * (seconds - self.longest))
        return seconds


class Bound:
    """Keeps drafting from losing more than a few per cent against plain rounds, by measured times.

    The account of `length_policy="goodput"`, fed by the rounds themselves instead of a measurement before them:
    drafting stops when the account no longer holds what a round may lose, and goes on when plain rounds have filled
    it. Rounds before the first plain one are booked when that has said what a plain round takes.
    """

    def __init__(self) -> None:
        self.account = Account()
        self._plain, self._drafted = Pace(), Pace()
        self._unbooked: list[tuple[float, float]] = []  # tokens and seconds
        self._num_rounds = 0  # those that drafted
        self._num_tokens = 0.0  # and what they made
        self._length = self._length_at_probe = 0  # tokens of the text, now and when a plain round was last measured

    def allows(self, num_tokens: int) -> bool:
        """Whether to draft after a text of `num_tokens` tokens."""
        self._length = max(self._length, num_tokens)  # of a batch the longest
        if self._num_tokens >= SURE_GAIN * self._num_rounds:  # the first draft, too
            return True
        probed = self._length_at_probe
        if not probed or self._length >= probed + max(probed // 2, GROWTH):
            return False
        return self.account.balance >= self._drafted.longest / self._plain.mean - 1

    def add(self, drafting: float, rest: float, tokens: float, reads_prompt: bool) -> None:
        """A round: its seconds, and the tokens that it made per sequence. The rest of a round that reads the prompt is
        not counted, nor is a token: plain decoding reads it, too."""
        if not drafting:
            if not reads_prompt:
                self._plain.add(rest)
                self._length_at_probe = self._length
                self._book()
                self.account.book(1.0, 1.0, has_drafted=False)
            return
        self._num_rounds += 1
        self._num_tokens += tokens
        seconds = drafting if reads_prompt else self._drafted.add(drafting + rest)
        self._unbooked.append((tokens - reads_prompt, seconds))
        if self._plain.mean:
            self._book()

    def _book(self) -> None:
        for tokens, seconds in self._unbooked:
            self.account.book(tokens, seconds / self._plain.mean, has_drafted=True)
        self._unbooked = []


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
