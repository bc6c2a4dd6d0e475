"""How long a draft gets: when another chunk follows, and how much of it is verified."""

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


class Drafter(Protocol):
    """What a policy asks of the drafter."""

    drafts_by_chunks: bool


@dataclass(frozen=True)
class RoundCosts:
    """Measured seconds: of a drafter pass by the tokens it reads besides the last one (the first pass reads the
    prompt), and of the rest of a round by the draft tokens it verifies. Points (count, seconds), ascending, at least
    two; linear between and beyond them."""

    draft: tuple[tuple[int, float], ...]
    verify: tuple[tuple[int, float], ...]


# (sequences of the batch, tokens of the longest one) -> what rounds of such a batch cost.
MeasureCosts = Callable[[int, int], RoundCosts]


# What drafting may lose against plain rounds: 2.7 tokens at once, which may be the price of reading the prompt, and
# 0.5 % of the plain rounds, so less than 3 % of 128 tokens; after 128 tokens 2.5 %. Of its gains it may lose 6 tokens
# before it stops. The rest is saved, and pays for new tries: 5 % of the plain rounds, as long as it lasts.
FIRST_CREDIT, CREDIT, MOST_CREDIT = 2.7, 0.005, 6.0
LONG_REQUEST, LATER_CREDIT, CREDIT_FROM_SAVINGS = 128, 0.025, 0.05


class Account:
    """What drafting has won or lost against plain rounds, in tokens per sequence. The unit of time is a plain round,
    which makes one token; rounds draft while the balance holds what they may lose."""

    def __init__(self) -> None:
        self.balance = FIRST_CREDIT
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
    is_bounded: whether the target's rounds are long enough for their times to say what drafting loses.
    """

    options: ClassVar[tuple[str, ...]] = ()
    is_bounded: bool = False

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


def first_ends(token_ids: torch.Tensor, eos_token_ids: torch.Tensor | None) -> torch.Tensor:
    """Number of tokens, of (B, n), up to and with the first end of sequence, (B,); 0 without one."""
    if eos_token_ids is None:
        return token_ids.new_zeros(len(token_ids))
    is_eos = torch.isin(token_ids, eos_token_ids)
    return (is_eos.long().argmax(dim=1) + 1) * is_eos.any(dim=1)
