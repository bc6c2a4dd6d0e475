"""The interface of every drafter, and the one chunk loop that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch.nn.functional import pad

from ..config import FailFastConfig
from ..engine.ragged import Rows, indices, is_even
from ..engine.runner_pool import Runners
from ..policies.base import LengthPolicy
from .checkpoints.target_fit import MadeFor
from .denoising import Warp

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Chunk(NamedTuple):
    """Tokens and confidences that one drafting step added."""

    token_ids: torch.Tensor  # (B, n)
    confidence: torch.Tensor  # (B, n), fp32, a function of the tokens before: never of the one that was drawn
    passes: int  # drafter forwards it took
    probs: torch.Tensor | None = None  # (B, n, V), fp32: the distributions that the tokens were drawn from, if any


def concatenate_probs(chunks: Sequence[Chunk]) -> torch.Tensor | None:
    """The distributions (B, n, V) of consecutive chunks; None if their tokens were not drawn."""
    probs = [chunk.probs for chunk in chunks if chunk.probs is not None]
    return torch.cat(probs, dim=1) if probs else None


@dataclass(frozen=True)
class Draft:
    """What the drafter proposes in a round; k, the length of the longest row, may be 0."""

    token_ids: torch.Tensor  # (B, k)
    confidence: torch.Tensor  # (B, k), fp32
    passes: int  # drafter forwards
    host_reads: int
    probs: torch.Tensor | None = None  # (B, k, V), fp32: what the tokens were drawn from
    lengths: list[int] = field(default_factory=list)  # of each row; what stands behind it means nothing; default k

    def __post_init__(self) -> None:
        if not self.lengths:
            self.lengths.extend([len(self)] * self.token_ids.shape[0])

    def __len__(self) -> int:
        return self.token_ids.shape[1]

    def to(self, device: torch.device) -> Draft:
        """The same draft where it is verified."""
        if self.token_ids.device == device:
            return self
        probs = None if self.probs is None else self.probs.to(device)
        return replace(self, token_ids=self.token_ids.to(device), confidence=self.confidence.to(device), probs=probs)


class RowSession(ABC):
    """A drafter at work on one sequence. Holds what the drafter remembers of the tokens seen so far.

    Between two drafts the sequence grows by some prefix of the last draft and one token more, and the owner says so
    with `accept`. A session that drafts from the target's hidden states names the ones it needs in `target_layers`
    (indices into transformers' `hidden_states`: 0 is the embedding), and is handed those of every token before the
    last accepted one with `observe`, as soon as the target has computed them: before the next draft.

    warp: None: drafts are the drafter's most likely tokens. Otherwise, set by the owner before the first draft: a
        session that can draws its tokens from the softmax of its warped logits, and says so in the draft's `probs`.
    """

    target_layers: tuple[int, ...] = ()
    warp: Warp | None = None

    def __init__(self, eos_token_ids: torch.Tensor | None) -> None:
        self.eos_token_ids = eos_token_ids
        self.num_tokens = 0  # accepted tokens at the time of the last draft

    @abstractmethod
    def draft(self, token_ids: torch.Tensor, policy: LengthPolicy, max_tokens: int) -> Draft:
        """Drafts up to `max_tokens` tokens after the accepted ones (1, n)."""

    @abstractmethod
    def accept(self, num_accepted: int) -> None:
        """The first `num_accepted` tokens of the last draft became part of the sequence, the others did not."""

    def observe(self, hidden_states: torch.Tensor) -> None:
        """The target's hidden states (1, m, width of all `target_layers`) of the next m tokens not yet handed over.

        Called only if the session names `target_layers`.
        """
        assert not self.target_layers, f"{type(self).__name__} asks for hidden states and does not take them"

    def inherit(self, previous: Self, num_tokens: int) -> int:
        """Takes over what another session of this drafter remembers of this text's first `num_tokens` tokens, all
        before the last one, and returns of how many. Called before the first draft if at all. None by default: then
        all is read."""
        return 0


class BatchSession(ABC):
    """A drafter at work on the rows of a batch: what the loop drives. As `RowSession`, row by row."""

    target_layers: tuple[int, ...] = ()
    warp: Warp | None = None

    @abstractmethod
    def draft_rows(self, text: Rows, policy: LengthPolicy, max_tokens: Sequence[int]) -> Draft:
        """Drafts up to `max_tokens[b]` tokens after the accepted ones of row b; none where that is < 1."""

    @abstractmethod
    def accept_rows(self, num_accepted: Sequence[int]) -> None:
        """The first `num_accepted[b]` tokens of row b's last draft became part of its sequence."""

    @abstractmethod
    def keep_rows(self, rows: Sequence[int]) -> None:
        """All other rows are complete: forget them."""

    def observe_rows(self, hidden_states: Sequence[torch.Tensor]) -> None:
        """Per row the target's hidden states (1, m, width of all `target_layers`) of its next m tokens."""
        assert not self.target_layers, f"{type(self).__name__} asks for hidden states and does not take them"


class RowSessions(BatchSession):
    """One session per row, one after the other: any drafter drafts for a batch in this way."""

    def __init__(self, sessions: Sequence[RowSession]) -> None:
        self.sessions = list(sessions)
        self.target_layers = self.sessions[0].target_layers

    def draft_rows(self, text: Rows, policy: LengthPolicy, max_tokens: Sequence[int]) -> Draft:
        for session in self.sessions:
            session.warp = self.warp
        rows = zip(self.sessions, text.values, text.lengths, max_tokens, strict=True)
        return stack([session.draft(ids[None, :length], policy, limit) for session, ids, length, limit in rows])

    def accept_rows(self, num_accepted: Sequence[int]) -> None:
        for session, count in zip(self.sessions, num_accepted, strict=True):
            session.accept(count)

    def keep_rows(self, rows: Sequence[int]) -> None:
        self.sessions = [self.sessions[row] for row in rows]

    def observe_rows(self, hidden_states: Sequence[torch.Tensor]) -> None:
        for session, states in zip(self.sessions, hidden_states, strict=True):
            session.observe(states)


def stack(drafts: Sequence[Draft]) -> Draft:
    """The drafts of single rows as one, on the first one's device."""
    if len(drafts) == 1:
        return drafts[0]
    longest, device = max(map(len, drafts)), drafts[0].token_ids.device

    def joined(rows: Sequence[torch.Tensor]) -> torch.Tensor:
        longer = (pad(row.to(device), (0, 0) * (row.ndim - 2) + (0, longest - row.shape[1])) for row in rows)
        return torch.cat(list(longer))

    drawn = next((draft.probs for draft in drafts if draft.probs is not None), None)
    none = None if drawn is None else drawn[:, :0]  # of a row without a draft
    return Draft(
        joined([draft.token_ids for draft in drafts]),
        joined([draft.confidence for draft in drafts]),
        sum(draft.passes for draft in drafts),
        sum(draft.host_reads for draft in drafts),
        None if none is None else joined([none if draft.probs is None else draft.probs for draft in drafts]),
        [len(draft) for draft in drafts],
    )


def draft_by_chunks(
    draft_chunk: Callable[[torch.Tensor, int], Chunk],
    caps: Sequence[int],
    num_tokens: int,
    policy: LengthPolicy,
    eos_token_ids: torch.Tensor | None,
    device: torch.device,
) -> Draft:
    """FailFast's chunk rule, for every row of a batch.

    One chunk at a time until the policy stops, the row's cap or an end-of-sequence token is reached. The chunk that
    made the policy stop is kept; tokens behind an end of sequence are not. A row that has stopped goes along with the
    others at no other cost than its share of their passes.

    draft_chunk: makes `length` more tokens of every row behind those drafted so far (B, d).
    caps: the longest draft of each row; may be < 1.
    num_tokens: accepted tokens of the longest row.
    """
    drafted = torch.zeros(len(caps), 0, dtype=torch.long, device=device)
    lengths = [0] * len(caps)
    is_drafting = policy.start_draft(len(caps), num_tokens, max(caps))
    growing = [row for row, cap in enumerate(caps) if is_drafting and cap > 0]
    chunks: list[Chunk] = []
    host_reads = 0
    while growing:
        start = drafted.shape[1]
        chunk = draft_chunk(drafted, min(policy.chunk_length, max(caps[row] for row in growing) - start))
        chunks.append(chunk)
        drafted = torch.cat([drafted, chunk.token_ids.to(device)], dim=1)
        can_extend = [row for row in growing if drafted.shape[1] < caps[row]]
        kept, extend, reads = policy.decide(chunk.token_ids, chunk.confidence, eos_token_ids, bool(can_extend))
        host_reads += reads
        for row in growing:
            lengths[row] = min(start + kept[row], caps[row])
        growing = [row for row in can_extend if extend[row]]
    if is_drafting:
        lengths = policy.cut(lengths)
    confidence = torch.cat([drafted[:, :0].float(), *(chunk.confidence.to(device) for chunk in chunks)], dim=1)
    longest, passes = max(lengths), sum(chunk.passes for chunk in chunks)
    probs = concatenate_probs(chunks)
    if probs is not None:
        probs = probs[:, :longest]
        if not is_even(lengths):  # nothing was drafted behind the end of a row
            is_drafted = torch.arange(longest, device=probs.device) < indices(lengths, 1, probs.device)
            probs = probs * is_drafted[..., None]
    return Draft(drafted[:, :longest], confidence[:, :longest], passes, host_reads, probs, lengths)


class ChunkedSession(RowSession):
    """A session that drafts by FailFast's chunk rule; its drafter says how a chunk is made."""

    def draft(self, token_ids: torch.Tensor, policy: LengthPolicy, max_tokens: int) -> Draft:
        """Drafts up to `max_tokens` tokens after the accepted ones (1, n): see `draft_by_chunks`."""
        self.num_tokens = token_ids.shape[1]
        cap = min(policy.max_draft_length, max_tokens, self.max_draft_length(self.num_tokens))
        return draft_by_chunks(
            lambda drafted, length: self.draft_chunk(token_ids, drafted, length),
            [cap],
            self.num_tokens,
            policy,
            self.eos_token_ids,
            token_ids.device,
        )

    @abstractmethod
    def draft_chunk(self, token_ids: torch.Tensor, drafted: torch.Tensor, length: int) -> Chunk:
        """`length` >= 1 more draft tokens after the accepted (1, n) and the already drafted (1, d) ones."""

    @abstractmethod
    def max_draft_length(self, num_tokens: int) -> int:
        """The longest draft that the drafter's positions allow behind `num_tokens` accepted tokens; may be < 1."""


class DiffusionDrafter(ABC):
    """A loaded diffusion language model that can draft for targets with its vocabulary.

    config: the chunk rule's numbers that suit this drafter; used where the caller gives none.
    made_for: the target its checkpoint names, if it names one.
    drafts_by_chunks: whether its sessions leave all decisions on lengths to the policy.
    own_model: the drafter as a model with a vocabulary of its own; None if it borrows the target's.
    """

    config: FailFastConfig
    made_for: MadeFor | None = None

    @cached_property
    def runners(self) -> Runners:
        """Makes the runners of this drafter's generations, and keeps their CUDA graphs between calls."""
        return Runners()

    drafts_by_chunks: bool = True
    own_model: Any = None

    @abstractmethod
    def start(self, target: PreTrainedModel, capacity: int, eos_token_ids: torch.Tensor | None) -> RowSession:
        """A session for one sequence of at most `capacity` tokens. Raises ValueError if the target does not fit."""

    def start_batch(
        self, target: PreTrainedModel, capacity: int, eos_token_ids: torch.Tensor | None, num_rows: int
    ) -> BatchSession:
        """A session for `num_rows` > 1 sequences at once; by default one session for each, one after the other."""
        return RowSessions([self.start(target, capacity, eos_token_ids) for _ in range(num_rows)])


def start(
    drafter: DiffusionDrafter,
    target: PreTrainedModel,
    capacity: int,
    eos_token_ids: torch.Tensor | None,
    num_rows: int,
) -> BatchSession:
    """A session for all rows of a batch, which may be one."""
    if num_rows == 1:
        return RowSessions([drafter.start(target, capacity, eos_token_ids)])
    return drafter.start_batch(target, capacity, eos_token_ids, num_rows)
