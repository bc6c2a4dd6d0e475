"""Draft lengths by goodput: draft and verify only while the expected tokens outweigh the time they cost.

Choosing lengths by goodput is SmartSpec's idea (arXiv 2406.14066), for draft models that write token by token. Here a
pass of the drafter makes a chunk at once, and its confidences, calibrated by what the target accepted, say what the
chunk is worth. The unit of time is a plain round (one target forward of one token per sequence); tokens are counted
per sequence. So a plain round makes one token per unit of time, and any other work must make more.
"""

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from typing import Self

import torch

from .base import (
    Account,
    ChunkRule,
    Decision,
    Drafter,
    LengthPolicy,
    MeasureCosts,
    RowPrices,
    check_drafts_by_chunks,
    first_ends,
)
from .calibration import OnlineCalibration

LONGEST_CHUNK = 16
LONGEST_DRAFT = 64

# A draft begins if the account holds the drafter's pass and the verification of this many tokens.
PROBE_LENGTH = 3

# A drafter with too little trust to be verified could never win trust back. So a round that drafts but finds no token
# worth verifying multiplies what was learned by this factor.
TRUST_MEMORY = 0.8


def seconds_at(points: Sequence[tuple[int, float]], count: int) -> float:
    """The seconds for a count, on the line through the points next to it."""
    right = min(max(bisect(points, (count,)), 1), len(points) - 1)
    (low, at_low), (high, at_high) = points[right - 1], points[right]
    return at_low + (at_high - at_low) * (count - low) / (high - low)


class Mean:
    """A running mean that forgets: it starts as if `prior` had been seen `weight` times, and fades back to `prior`."""

    def __init__(self, prior: float, weight: float = 1.0, memory: float = 1.0) -> None:
        self.prior, self.prior_weight, self.memory = prior, weight, memory
        self.total = self.weight = 0.0

    def add(self, total: float, weight: float = 1.0) -> None:
        self.fade(self.memory)
        self.total += total
        self.weight += weight

    def fade(self, memory: float) -> None:
        self.total *= memory
        self.weight *= memory

    @property
    def value(self) -> float:
        return (self.prior * self.prior_weight + self.total) / (self.prior_weight + self.weight)


class RowDraft:
    """A sequence's unfinished draft: of each token its place, its confidence and its survival (how likely it and all
    before it are confirmed); and the time that the passes took so far."""

    def __init__(self) -> None:
        self.tokens: list[tuple[int, float]] = []
        self.survival: list[float] = []
        self.cost = 0.0
        self.is_ended = False

    def add(self, confidence: Sequence[float], calibration: OnlineCalibration) -> None:
        survival = self.survival[-1] if self.survival else 1.0
        for value in confidence:
            place = len(self.tokens)
            survival *= calibration.probability(place, value)
            self.tokens.append((place, value))
            self.survival.append(survival)


class Goodput(LengthPolicy):
    """Replaces tau, N and N_max by measured costs and by what was accepted so far.

    An account holds what drafting wins or loses against plain rounds, and rounds draft while it lasts: a useless
    drafter soon stops, and tries again now and then (`plain_rounds` in the stats). The first chunk ends before the
    first place that gains less than it costs in the pass. Another chunk follows, or a token is verified, if it is
    expected to make more tokens than the known rate makes in the same time. Whether a token is verified depends
    neither on it nor on anything after it, since later drawn tokens and their confidences depend on it.

    What else a round may propose has the same price: a token that the text suggests, or a branch of a tree, is
    verified if it is worth its row; and where the text suggests something that is likely enough, the drafter's pass is
    spared. All of it is in the account.

    Decides on confidence and on earlier rounds, never on the tokens drafted. Draft lengths depend on measured times,
    so that under sampling a seed reproduces a text only while the measurement lasts (the process).
    """

    def __init__(self, measure: MeasureCosts) -> None:
        super().__init__(1, LONGEST_DRAFT)
        self._measure = measure
        self.calibration: OnlineCalibration = OnlineCalibration()

    @classmethod
    def for_pair(cls, config: ChunkRule, drafter: Drafter, measure: MeasureCosts) -> Self:
        check_drafts_by_chunks("goodput", drafter)
        return cls(measure)

    def start(self, num_rows: int, num_tokens: int) -> None:
        self.price(num_rows, num_tokens)
        self._account = Account()
        self._rate = Mean(1.0, memory=0.95)
        # By place: the gain in a round for the first chunk, the survival for later ones.
        self._gains = [Mean(0.7 ** (place + 1), memory=0.97) for place in range(LONGEST_CHUNK)]
        self._later = [Mean(0.7 ** (place + 1), memory=0.97) for place in range(LONGEST_CHUNK)]
        self._next = Mean(0.7, memory=0.99)  # how often the token after a confirmed one is confirmed
        self._length = 0  # tokens of this draft that are worth verifying
        self._num_read = 0  # tokens that the drafter had read when the last draft began
        self._own = Mean(1.0, memory=0.95)  # tokens confirmed of a draft
        self._begin_round()

    def _begin_round(self) -> None:
        self._rows: list[RowDraft] = []  # the drafts in progress
        self._drafted: list[RowDraft] = []  # all drafts of the round
        self._offered: Sequence[Sequence[float]] = []  # by sequence, the chances of what the text suggests
        self._num_verified: int | None = None  # tokens of the longest sequence; None: those of its draft
        self._in_tree = False
        self._more = 0.0  # tokens per sequence that were confirmed besides the draft's

    def price(self, num_rows: int, num_tokens: int) -> None:
        """Takes over the costs of such a batch; keeps what was learned of confidences and gains."""
        costs = self._measure(num_rows, num_tokens)
        self.num_rows = num_rows
        plain = seconds_at(costs.verify, 0)
        self._draft_points = [(count, seconds / plain) for count, seconds in costs.draft]
        counts = range(LONGEST_DRAFT + 1)
        self._verify = [seconds_at(costs.verify, count) / plain for count in counts]
        self._tree = [seconds_at(costs.tree or costs.verify, count) / plain for count in counts]
        first, last = self._pass_cost(1), self._pass_cost(LONGEST_CHUNK)
        self._row_cost = max(last - first, 0.0) / (LONGEST_CHUNK - 1)

    @property
    def account(self) -> float:
        """What drafting may lose now."""
        return self._account.balance

    @account.setter
    def account(self, balance: float) -> None:
        self._account.balance = balance

    @property
    def rate(self) -> float:
        """Recent tokens per unit of time; plain rounds make 1."""
        return max(1.0, self._rate.value)

    def resume(self, num_read: int) -> None:
        self._num_read = num_read

    def start_draft(self, num_rows: int, num_tokens: int, room: int) -> bool:
        self._rows = [RowDraft() for _ in range(num_rows)]
        self._drafted += self._rows
        self._length = 0
        unread = max(num_tokens - self._num_read, 1)
        length = self._best_chunk_length() if self._can_afford(unread, 1) else 0
        if room < 1 or not length or not self._can_afford(unread, length):
            return False
        cost = self._pass_cost(unread - 1 + length)
        if self._spares(cost):
            return False
        self.chunk_length = length
        self._num_read = num_tokens
        self._book(cost)
        return True

    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        decision = self.decide(torch.zeros_like(confidence, dtype=torch.long), confidence, None, can_extend=True)
        return torch.tensor(decision.extend, device=confidence.device)

    def decide(
        self, token_ids: torch.Tensor, confidence: torch.Tensor, eos_token_ids: torch.Tensor | None, can_extend: bool
    ) -> Decision:
        length = confidence.shape[1]
        ends = first_ends(token_ids, eos_token_ids)
        values = torch.cat([ends[:, None].to(confidence.dtype), confidence], dim=1).tolist()  # host sync: the chunk
        kept = [int(end) or length for end, *_ in values]
        self._add([row[: count + 1] for row, count in zip(values, kept, strict=True)])
        extends = can_extend and self._extends(length)
        return Decision(kept, [extends and not row.is_ended for row in self._rows], 1)

    def cut(self, lengths: Sequence[int]) -> list[int]:
        lengths = [min(length, self._length) for length in lengths]
        for row, length in zip(self._rows, lengths, strict=True):
            del row.tokens[length:]
        return lengths

    def observe(self, num_accepted: Sequence[int]) -> None:
        for row, accepted in zip(self._drafted, num_accepted, strict=True):
            for place, confidence in row.tokens[: accepted + 1]:
                self.calibration.observe(place, confidence, place < accepted)
        own = sum(num_accepted) / len(num_accepted)
        tokens = 1 + own + self._more
        drafting = sum(row.cost for row in self._drafted) / len(self._drafted)
        verified = self._num_verified
        if verified is None:
            verified = max(len(row.tokens) for row in self._drafted)
        costs = self._tree if self._in_tree else self._verify
        time = drafting + costs[min(verified, LONGEST_DRAFT)]
        self._rate.add(tokens, time)
        if drafting:
            self._own.add(own)
            if not any(row.tokens for row in self._drafted):
                self.calibration.fade(TRUST_MEMORY)
        self._account.book(tokens, time, has_drafted=bool(drafting or verified))
        self._begin_round()

    def offered(self, chances: Sequence[Sequence[float]]) -> None:
        self._offered = chances

    @property
    def prices(self) -> RowPrices:
        drafting = sum(row.cost for row in self._drafted) / max(len(self._drafted), 1)
        return RowPrices(self.rate, self._verify, self._tree, self.account + 1 - drafting)

    def proposed(self, num_tokens: Sequence[int], in_tree: bool) -> None:
        self._num_verified, self._in_tree = max(num_tokens), in_tree

    def overtaken(self, counts: Sequence[int]) -> None:
        self._more = sum(counts) / len(counts)

    def _spares(self, cost: float) -> bool:
        """Whether the text suggests enough to do without a pass of this cost: what a draft usually brings counts only
        where the text's first token is wrong."""
        if not self._offered or not any(self._offered):
            return False
        wrong = sum(1 - (chances[0] if chances else 0.0) for chances in self._offered) / len(self._offered)
        return wrong * self._own.value < self.rate * cost

    def _can_afford(self, unread: int, length: int) -> bool:
        """Whether the account covers a draft of one chunk of `length` tokens, whose pass reads `unread` new tokens."""
        pass_cost = self._pass_cost(unread - 1 + length)
        return self.account >= pass_cost + self._verify[min(length, PROBE_LENGTH)] - 1

    def _book(self, cost: float) -> None:
        for row in self._rows:
            row.cost += cost

    def _pass_cost(self, rows: int) -> float:
        return max(seconds_at(self._draft_points, rows), 0.0)

    def _best_chunk_length(self) -> int:
        """The number of places before the first one that gains less than it costs in the pass."""
        for place in range(1, LONGEST_CHUNK):
            if self._gains[place].value < self.rate * self._row_cost:
                return place
        return LONGEST_CHUNK

    def _survival(self, index: int) -> float:
        """The expected tokens of a place in the draft, per sequence."""
        values = [row.survival[index] for row in self._rows if index < len(row.survival)]
        return sum(values) / len(self._rows)

    def _gain(self, survival: float, index: int) -> float:
        """What verifying the token gains over spending its time at the known rate."""
        return survival - self.rate * (self._verify[index + 1] - self._verify[index])

    def _add(self, chunk: list[list[float]]) -> None:
        """Records a chunk (per sequence its end, 0 for none, and its confidences) and what its places were worth."""
        start = max(len(row.survival) for row in self._rows)
        before = self._survival(start - 1) if start else 1.0
        for row, (end, *confidence) in zip(self._rows, chunk, strict=True):
            if not row.is_ended:
                row.add(confidence, self.calibration)
                row.is_ended = end > 0
        if not start:
            self._learn_gains()
        previous = before
        for place in range(max(len(row.survival) for row in self._rows) - start):
            index, survival = start + place, self._survival(start + place)
            self._next.add(survival, previous)
            previous = survival
            if start and before:
                self._later[place].add(survival / before)
            if self._length == index and self._is_worth_verifying(index, survival):
                self._length += 1

    def _learn_gains(self) -> None:
        """Records what each place of the first chunk gained; undrafted places count as if the draft had gone on."""
        survival = 1.0
        for place, mean in enumerate(self._gains):
            is_drafted = any(place < len(row.survival) for row in self._rows)
            survival = self._survival(place) if is_drafted else survival * self._next.value
            mean.add(max(self._gain(survival, place), 0.0))

    def _is_worth_verifying(self, index: int, survival: float) -> bool:
        """Whether the target's time for this token and some of the next pays off, given their expected survival."""
        if self._stake(index + 1) > self.account:
            return False
        ahead = range(min(LONGEST_CHUNK, LONGEST_DRAFT - index))
        gains = accumulate(self._gain(survival * self._next.value**step, index + step) for step in ahead)
        return any(gain > 0 for gain in gains)

    def _extends(self, length: int) -> bool:
        """Whether another chunk of `length` tokens is expected to gain more than its pass costs."""
        start = max(len(row.survival) for row in self._rows)
        if self._length < start or start + length > LONGEST_DRAFT:
            return False
        cost = self._pass_cost(2 * length)  # the new chunk, and the newest one's tokens
        survival = sum(row.survival[-1] for row in self._rows if not row.is_ended) / len(self._rows)
        chunk = [self._gain(survival * self._later[place].value, start + place) for place in range(length)]
        if max(accumulate(chunk)) <= self.rate * cost or self._stake(start + length) + cost > self.account:
            return False
        self._book(cost)
        return True

    def _stake(self, length: int) -> float:
        """What the round loses if none of `length` draft tokens is confirmed."""
        return self._rows[0].cost + self._verify[length] - 1
