"""How long a draft gets: when another chunk follows, and how much of it is verified."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, Self

import torch


class Decision(NamedTuple):
    """What becomes of the newest chunk, per sequence, and how many transfers to the host the decision took."""

    kept: list[int]  # tokens of the chunk
    extend: list[bool]
    host_reads: int


class ChunkRule(Protocol):
    """The numbers of FailFast's rule: see `FailFastConfig`."""

    @property
    def confidence_threshold(self) -> float: ...

    @property
    def chunk_length(self) -> int: ...

    @property
    def max_draft_length(self) -> int: ...


class Calibration(Protocol):
    """What a confidence is worth: see `OnlineCalibration`."""

    def probability(self, place: int, confidence: float) -> float: ...

    def observe(self, place: int, confidence: float, is_confirmed: bool) -> None: ...


class Drafter(Protocol):
    """What a policy asks of the drafter."""

    drafts_by_chunks: bool


@dataclass(frozen=True)
class RoundCosts:
    """Measured seconds: of a drafter pass by the tokens it reads besides the last one (the first pass reads the
    prompt), and of the rest of a round by the draft tokens it verifies. Points (count, seconds), ascending, at least
    two; linear between and beyond them.

    tree: the same as `verify` for drafts that branch, the making of the tree included; empty: as `verify`.
    """

    draft: tuple[tuple[int, float], ...]
    verify: tuple[tuple[int, float], ...]
    tree: tuple[tuple[int, float], ...] = ()


# (sequences of the batch, tokens of the longest one) -> what rounds of such a batch cost.
MeasureCosts = Callable[[int, int], RoundCosts]


@dataclass(frozen=True)
class RowPrices:
    """What the target's verification of more tokens costs, in plain rounds, and what it must bring.

    rate: tokens that a plain round's time has to bring. chain, tree: the cost by the tokens verified. most: the
    highest cost of the verification.
    """

    rate: float
    chain: Sequence[float]
    tree: Sequence[float]
    most: float

    def gain(self, chance: float, num_tokens: int, in_tree: bool) -> float:
        """The tokens won by verifying one more token besides `num_tokens`, if it is confirmed so likely."""
        costs = self.tree if in_tree else self.chain
        if num_tokens + 1 >= len(costs) or costs[num_tokens + 1] > self.most:
            return -math.inf
        return chance - self.rate * (costs[num_tokens + 1] - costs[num_tokens])

    def surplus(self, num_tree: int, num_chain: int) -> float:
        """The tokens that a tree must win to be worth more than a chain, by the tokens of both."""
        if num_tree >= len(self.tree) or self.tree[num_tree] > self.most or num_chain >= len(self.chain):
            return math.inf
        return self.rate * (self.tree[num_tree] - self.chain[num_chain])


# What drafting may lose against plain rounds: 2.7 tokens at once, which may be the price of reading the prompt, and
# 0.5 % of the plain rounds, so less than 3 % of 128 tokens; after 128 tokens 2.5 %. Of its gains it may lose 6 tokens
# before it stops. The rest is saved, and pays for new tries: 5 % of the plain rounds, as long as it lasts.
FIRST_CREDIT, CREDIT, MOST_CREDIT = 2.7, 0.005, 6.0
LONG_REQUEST, LATER_CREDIT, CREDIT_FROM_SAVINGS = 128, 0.025, 0.05


class Account:
    """What drafting has won or lost against plain rounds, in tokens per sequence. The unit of time is a plain round,
    which makes one token; rounds draft while the balance holds what they may lose."""

    def __init__(self, first_credit: float = FIRST_CREDIT) -> None:
        self.balance = first_credit
        self.savings = 0.0
        self._num_emitted = 0.0

    def book(self, tokens: float, time: float, has_drafted: bool) -> None:
        """A round that made this number of tokens in this time."""
        self._num_emitted += tokens
        self.balance += tokens - time if has_drafted else self._credit()
        self.savings += max(self.balance - MOST_CREDIT, 0.0)
        self.balance = min(self.balance, MOST_CREDIT)

    def _credit(self) -> float:
        """What a plain round adds."""
        saved = min(self.savings, CREDIT_FROM_SAVINGS)
        self.savings -= saved
        return saved + (CREDIT if self._num_emitted < LONG_REQUEST else LATER_CREDIT)


class LengthPolicy(ABC):
    """Decides on confidence alone, never on which token was drafted: otherwise sampling would not be exact.

    For a draft drawn from a distribution q this means: whether a token is verified may depend on the confidences of
    earlier chunks and of its own chunk up to its own place, which were known before it was drawn. It may depend
    neither on the token itself nor on the confidences of later chunks: the drafter computed those from the token, and
    a cut by them would favour some tokens over others. So `cut` may stop a draft at a place only for what was known
    there.

    A policy serves one generation at a time. One that learns overrides the hooks: `start`, then in every round
    `start_draft` before and `cut` after the drafting, and `observe` after the verification.

    options: the fields of `FailFastConfig` that the policy reads.
    calibration: what a confidence of this pair is worth; such a policy also weighs what a round may propose besides
        drafts. None: whatever is asked for is proposed.
    is_bounded: whether the target's rounds are long enough for their times to say what drafting loses.
    """

    options: ClassVar[tuple[str, ...]] = ()
    is_bounded: bool = False
    calibration: Calibration | None = None

    def __init__(self, chunk_length: int, max_draft_length: int) -> None:
        self.chunk_length = chunk_length
        self.max_draft_length = max_draft_length

    @classmethod
    def for_pair(cls, config: ChunkRule, drafter: Drafter, measure: MeasureCosts) -> Self:
        """The policy for a request that names it, given drafter and costs. Raises ValueError if the drafter does not
        leave lengths to it. Policies that are only passed as objects need not define it."""
        raise NotImplementedError

    @abstractmethod
    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        """Whether another chunk follows in each sequence: bools (B,) on the device of `confidence` (B, n), the newest
        chunk's."""

    def start(self, num_rows: int, num_tokens: int) -> None:  # noqa: B027
        """A generation of `num_rows` sequences begins; the longest has `num_tokens` tokens."""

    def resume(self, num_read: int) -> None:  # noqa: B027
        """The drafter remembers `num_read` tokens of the text from an earlier call; called before the first draft."""

    def offered(self, chances: Sequence[Sequence[float]]) -> None:  # noqa: B027
        """What a round without a draft may propose: how likely the target confirms the first 1, 2, ... tokens that the
        text suggests for each sequence. Called before `start_draft`, of policies with a calibration."""

    @property
    def prices(self) -> RowPrices | None:
        """What more tokens than the draft's cost in this round; None: nothing that counts."""
        return None

    def proposed(self, num_tokens: Sequence[int], in_tree: bool) -> None:  # noqa: B027
        """The target verifies `num_tokens[b]` tokens of sequence b: the draft, and what else is proposed."""

    def overtaken(self, counts: Sequence[int]) -> None:  # noqa: B027
        """Sequence b got `counts[b]` further tokens, which are not of its draft; called before `observe`."""

    def start_draft(self, num_rows: int, num_tokens: int, room: int) -> bool:
        """Whether to draft in this round, for `num_rows` sequences, the longest of `num_tokens` tokens.

        room: length of the longest possible draft.
        """
        return room > 0

    def decide(
        self, token_ids: torch.Tensor, confidence: torch.Tensor, eos_token_ids: torch.Tensor | None, can_extend: bool
    ) -> Decision:
        """What becomes of the newest chunk, ids and confidences both (B, n), in one transfer to the host.

        A chunk is kept up to its first end of sequence; the ids are used for nothing else.
        """
        num_rows, length = confidence.shape
        if eos_token_ids is None and not can_extend:
            return Decision([length] * num_rows, [False] * num_rows, 0)
        rows = self._decided(token_ids, confidence, eos_token_ids)
        return Decision([kept for kept, _ in rows], [extend and can_extend for _, extend in rows], 1)

    def _decided(
        self, token_ids: torch.Tensor, confidence: torch.Tensor, eos_token_ids: torch.Tensor | None
    ) -> Sequence[tuple[int, bool]]:
        """Per sequence, how many tokens are kept and whether another chunk may follow."""
        ends = first_ends(token_ids, eos_token_ids)
        extend = self.should_extend(confidence).expand(len(confidence))
        rows = torch.stack([ends, extend.long()], dim=1).tolist()  # host sync: kept length and extend
        return [(end or confidence.shape[1], bool(extend) and not end) for end, extend in rows]

    def cut(self, lengths: Sequence[int]) -> list[int]:
        """How many tokens of each sequence's draft the target verifies, at most `lengths`."""
        return list(lengths)

    def observe(self, num_accepted: Sequence[int]) -> None:  # noqa: B027
        """The target has confirmed `num_accepted[b]` tokens of sequence b's draft."""

    def spent(self, drafting: float, rest: float, num_emitted: Sequence[int]) -> None:  # noqa: B027
        """The round is over: the seconds that drafting and all else took, and how many tokens each sequence got."""


def check_drafts_by_chunks(name: str, drafter: Drafter) -> None:
    """Raises ValueError on a drafter whose drafts have lengths of their own, which the named rule cannot decide."""
    if not drafter.drafts_by_chunks:
        raise ValueError(
            f"`length_policy={name!r}` needs a drafter of the target's tokenizer that drafts by chunks: neither "
            "`assistant_tokenizer` nor `mode='reference'` can be combined with it."
        )


def first_ends(token_ids: torch.Tensor, eos_token_ids: torch.Tensor | None) -> torch.Tensor:
    """Number of tokens, of (B, n), up to and with the first end of sequence, (B,); 0 without one."""
    if eos_token_ids is None:
        return token_ids.new_zeros(len(token_ids))
    is_eos = torch.isin(token_ids, eos_token_ids)
    return (is_eos.long().argmax(dim=1) + 1) * is_eos.any(dim=1)
