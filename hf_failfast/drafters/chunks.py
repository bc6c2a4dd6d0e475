"""FailFast's chunk rule: the one loop that makes a draft out of chunks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..engine.ragged import RaggedIds, indices, is_even
from ..policies.base import LengthPolicy
from .base import Draft, DraftSession
from .denoising import Alternatives


class Chunk(NamedTuple):
    """Tokens and confidences that one drafting step added."""

    token_ids: torch.Tensor  # (B, n)
    confidence: torch.Tensor  # (B, n), fp32, a function of the tokens before, never of the one drawn
    passes: int  # drafter forwards it took
    probs: torch.Tensor | None = None  # (B, n, V), fp32: the distributions that the tokens were drawn from, if any
    alternatives: Alternatives | None = None  # if the request asks for them


def concatenate_probs(chunks: Sequence[Chunk]) -> torch.Tensor | None:
    """The distributions (B, n, V) of consecutive chunks; None if their tokens were not drawn."""
    probs = [chunk.probs for chunk in chunks if chunk.probs is not None]
    return torch.cat(probs, dim=1) if probs else None


def concatenate_alternatives(chunks: Sequence[Chunk]) -> Alternatives | None:
    """The alternatives of consecutive chunks; None if there are none."""
    parts = [chunk.alternatives for chunk in chunks if chunk.alternatives is not None]
    if not parts:
        return None
    return Alternatives(*(torch.cat(states, dim=1) for states in zip(*parts, strict=True)))


class ChunkedSession(DraftSession):
    """A session that drafts chunk by chunk: the subclass makes a chunk, the length policy says how many follow.

    eos_token_ids: on the drafter's device; None: no end of sequence ends a draft.
    window: the most tokens of a sequence that the drafter sees; 0: all. A sequence that has outgrown it is read anew
        from half a window before its end on, as if it began there; so each of its tokens is read twice at most, and
        positions and slots stay below the window.

    lengths: accepted tokens of each sequence at the time of the last draft, counted from the first one that is seen.
    offsets: tokens of each sequence before that one.
    """

    def __init__(self, eos_token_ids: torch.Tensor | None, window: int = 0) -> None:
        self.eos_token_ids = eos_token_ids
        self.window = window
        self.lengths: list[int] = []
        self.offsets: list[int] = []

    @abstractmethod
    def draft_chunk(self, known: RaggedIds, length: int) -> Chunk:
        """`length` >= 1 more tokens after the known ones of each sequence: the accepted ones (`self.lengths`), then
        those drafted so far, the same number for all."""

    @abstractmethod
    def max_draft_length(self, num_tokens: int) -> int:
        """The longest draft that the drafter's positions allow after `num_tokens` accepted tokens; may be < 1."""

    def draft(self, text: RaggedIds, policy: LengthPolicy, room: Sequence[int]) -> Draft:
        """Drafts one chunk at a time until the policy stops, or a sequence's room or an end of sequence is reached.

        The chunk that made the policy stop is kept; tokens after an end of sequence are not. A sequence that has
        stopped goes along with the others and costs only its share of their passes.
        """
        text = self._seen(text)
        self.lengths = text.lengths
        caps = [
            min(policy.max_draft_length, limit, self.max_draft_length(length))
            for limit, length in zip(room, text.lengths, strict=True)
        ]
        lengths = [0] * len(caps)
        is_drafting = policy.start_draft(len(caps), max(text.lengths), max(caps))
        growing = [row for row, cap in enumerate(caps) if is_drafting and cap > 0]
        chunks: list[Chunk] = []
        host_reads = start = 0
        while growing:
            chunk = self.draft_chunk(text, min(policy.chunk_length, max(caps[row] for row in growing) - start))
            chunks.append(chunk)
            text = text.append(chunk.token_ids.to(text.ids.device))
            end = start + chunk.token_ids.shape[1]
            can_extend = [row for row in growing if end < caps[row]]
            kept, extend, reads = policy.decide(
                chunk.token_ids, chunk.confidence, self.eos_token_ids, bool(can_extend)
            )
            host_reads += reads
            for row in growing:
                lengths[row] = min(start + kept[row], caps[row])
            growing = [row for row in can_extend if extend[row]]
            start = end
        if is_drafting:
            lengths = policy.cut(lengths)
        return _joined(chunks, lengths, host_reads, text)

    def restart(self, rows: Sequence[int]) -> None:
        """Forgets these sequences: they are read anew from another token on. Called only with a `window`."""
        assert not self.window, f"{type(self).__name__} has a window and does not begin anew"

    def keep(self, rows: Sequence[int]) -> None:
        self.offsets = [self.offsets[row] for row in rows] if self.offsets else []

    def _seen(self, text: RaggedIds) -> RaggedIds:
        """The tokens of each sequence that the drafter sees."""
        if not self.window:
            return text
        self.offsets = self.offsets or [0] * len(text.lengths)
        pairs = enumerate(zip(text.lengths, self.offsets, strict=True))
        outgrown = [row for row, (length, offset) in pairs if not 0 < length - offset <= self.window]
        if outgrown:
            self.restart(outgrown)
        for row in outgrown:  # or fallen short of: what was taken back may have begun before what was in sight
            self.offsets[row] = max(text.lengths[row] - self.window // 2, 0)
        if not any(self.offsets):
            return text
        lengths = [length - offset for length, offset in zip(text.lengths, self.offsets, strict=True)]
        return RaggedIds(text.window(self.offsets, max(lengths)), lengths)


def _joined(chunks: Sequence[Chunk], lengths: list[int], host_reads: int, text: RaggedIds) -> Draft:
    """The draft of these chunks, `lengths[b]` tokens for sequence b, on the text's device."""
    if not chunks:
        return Draft.empty(text)
    longest, device = max(lengths), text.ids.device
    token_ids = torch.cat([chunk.token_ids.to(device) for chunk in chunks], dim=1)[:, :longest]
    confidence = torch.cat([chunk.confidence.to(device) for chunk in chunks], dim=1)[:, :longest]
    probs = concatenate_probs(chunks)
    if probs is not None:
        probs = probs[:, :longest]
        if not is_even(lengths):  # nothing was drafted after the end of a sequence
            is_drafted = torch.arange(longest, device=probs.device) < indices(lengths, 1, probs.device)
            probs = probs * is_drafted[..., None]
    alternatives = concatenate_alternatives(chunks)
    if alternatives is not None:
        alternatives = alternatives.map(lambda values: values[:, :longest])
    passes = sum(chunk.passes for chunk in chunks)
    return Draft(token_ids, confidence, passes, host_reads, probs, lengths, alternatives)
