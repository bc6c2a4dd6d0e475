"""The interface of every drafter, and the one chunk loop that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..config import FailFastConfig
from ..length_policy import LengthPolicy
from .made_for import MadeFor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Chunk(NamedTuple):
    """Tokens and confidences that one drafting step added."""

    token_ids: torch.Tensor  # (1, n)
    confidence: torch.Tensor  # (1, n), fp32, a function of the tokens before: never of the one that was drawn
    passes: int  # drafter forwards it took
    probs: torch.Tensor | None = None  # (1, n, V), fp32: the distributions that the tokens were drawn from, if any


def concatenate_probs(chunks: Iterable[Chunk]) -> torch.Tensor | None:
    """The distributions (1, n, V) of consecutive chunks; None if their tokens were not drawn."""
    probs = [chunk.probs for chunk in chunks if chunk.probs is not None]
    return torch.cat(probs, dim=1) if probs else None


@dataclass(frozen=True)
class Draft:
    """What the drafter proposes in a round; k may be 0."""

    token_ids: torch.Tensor  # (1, k)
    confidence: torch.Tensor  # (1, k), fp32
    passes: int  # drafter forwards
    host_reads: int
    probs: torch.Tensor | None = None  # (1, k, V), fp32: what the tokens were drawn from

    def __len__(self) -> int:
        return self.token_ids.shape[1]

    def to(self, device: torch.device) -> Draft:
        """The same draft where it is verified."""
        probs = None if self.probs is None else self.probs.to(device)
        return replace(self, token_ids=self.token_ids.to(device), probs=probs)


class DraftSession(ABC):
    """A drafter at work on one sequence. Holds what the drafter remembers of the tokens seen so far.

    Between two drafts the sequence grows by some prefix of the last draft and one token more, and the owner says so
    with `accept`. A session that drafts from the target's hidden states names the ones it needs in `target_layers`
    (indices into transformers' `hidden_states`: 0 is the embedding), and is handed those of every token before the
    last accepted one with `observe`, as soon as the target has computed them: before the next draft.

    temperature: 0: drafts are the drafter's most likely tokens. Above, set by the owner before the first draft: a
        session that can draws its tokens from softmax(logits / temperature) and says so in the draft's `probs`.
    """

    target_layers: tuple[int, ...] = ()
    temperature: float = 0.0

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


class ChunkedSession(DraftSession):
    """A session that drafts by FailFast's chunk rule; its drafter says how a chunk is made."""

    def draft(self, token_ids: torch.Tensor, policy: LengthPolicy, max_tokens: int) -> Draft:
        """Drafts up to `max_tokens` tokens after the accepted ones (1, n): FailFast's chunk rule.

        One chunk at a time until the policy stops, the cap or an end-of-sequence token is reached. The chunk that
        made the policy stop is kept; tokens behind an end of sequence are not.
        """
        self.num_tokens = token_ids.shape[1]
        cap = min(policy.max_draft_length, max_tokens, self.max_draft_length(self.num_tokens))
        drafted = token_ids[:, :0]
        confidence = torch.zeros(1, 0, device=token_ids.device)
        chunks: list[Chunk] = []
        passes = host_reads = 0
        is_drafting = extend = policy.start_draft(1, self.num_tokens, cap)
        while extend:
            length = min(policy.chunk_length, cap - drafted.shape[1])
            chunk = self.draft_chunk(token_ids, drafted, length)
            passes += chunk.passes
            drafted = torch.cat([drafted, chunk.token_ids.to(drafted.device)], dim=1)
            confidence = torch.cat([confidence, chunk.confidence.to(confidence.device)], dim=1)
            can_extend = drafted.shape[1] < cap
            (kept,), (extend,), reads = policy.decide(chunk.confidence, self._ends(chunk.token_ids), can_extend)
            host_reads += reads
            cut = drafted.shape[1] - length + kept
            drafted, confidence = drafted[:, :cut], confidence[:, :cut]
            chunks.append(chunk)
        if is_drafting:
            (cut,) = policy.cut([drafted.shape[1]])
            drafted, confidence = drafted[:, :cut], confidence[:, :cut]
        probs = concatenate_probs(chunks)
        return Draft(drafted, confidence, passes, host_reads, None if probs is None else probs[:, : drafted.shape[1]])

    def _ends(self, token_ids: torch.Tensor) -> torch.Tensor | None:
        """How many of the tokens (1, n) there are up to the first end of sequence, (1,); 0 without one."""
        if self.eos_token_ids is None:
            return None
        is_eos = torch.isin(token_ids, self.eos_token_ids)
        return (is_eos.long().argmax(dim=1) + 1) * is_eos.any(dim=1)

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
    """

    config: FailFastConfig
    made_for: MadeFor | None = None
    drafts_by_chunks: bool = True

    @abstractmethod
    def start(self, target: PreTrainedModel, capacity: int, eos_token_ids: torch.Tensor | None) -> DraftSession:
        """A session for one sequence of at most `capacity` tokens. Raises ValueError if the target does not fit."""
