"""Tokens that something other than the drafter suggests, and how they continue its drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch.nn.functional import one_hot, pad

from ..drafters import Draft
from ..engine.kernels.reference import RowOutcome
from ..engine.ragged import RaggedIds
from ..policies.calibration import OnlineCalibration

LONGEST_MATCH = 32  # tokens; longer ones are trusted alike


Source = Literal["lookup", "reuse"]


class Suggestion(NamedTuple):
    """Tokens that may follow the first `start` tokens of a draft, suggested by a match of some length."""

    start: int
    token_ids: list[int]
    match: int
    trust: float  # how likely the first of the tokens is right
    source: Source


@dataclass(frozen=True)
class Proposal(Draft):
    """A draft whose first `own[b]` tokens are the drafter's own draft, and whose first `chosen[b]` are among its
    candidates (empty: those of its draft); the rest are the sequence's only suggestion."""

    own: tuple[int, ...] = ()
    suggestions: tuple[tuple[Suggestion, ...], ...] = ()
    chosen: tuple[int, ...] = ()

    def accepted_own(self, outcome: Sequence[RowOutcome]) -> list[int]:
        """How many tokens of the drafter's own draft were accepted, in line from the first."""
        return [min(row.accepted, count) for row, count in zip(outcome, self.own, strict=True)]

    def confirmed(self, outcome: Sequence[RowOutcome]) -> list[int]:
        """How many of the drafter's tokens were accepted, whichever of its candidates they were."""
        if not self.chosen:
            return self.accepted_own(outcome)
        return [min(row.accepted, count) for row, count in zip(outcome, self.chosen, strict=True)]

    def accepted_of(self, place: int, row: RowOutcome, suggestion: Suggestion) -> int | None:
        """How many tokens of a suggestion for a sequence were accepted; None if the tokens before it were not."""
        return None if row.accepted < suggestion.start else row.accepted - suggestion.start

    def accepted_from(self, place: int, row: RowOutcome, source: Source) -> int:
        """How many accepted tokens of a sequence only this source proposed."""
        starts = [each.start for each in self.suggestions[place] if each.source == source]
        return max(row.accepted - starts[0], 0) if starts else 0


class View(NamedTuple):
    """A sequence and its draft on the host."""

    row: int  # of the batch
    text: list[int]
    drafted: list[int]
    sure: int | None  # tokens of the draft before the first unsure one; None: nothing may follow it
    room: int  # tokens that may follow the text
    confidence: list[float]  # of the drafted tokens


class Reader:
    """Keeps the sequences of one generation on the host.

    threshold: the confidence from which on a draft's token is sure.
    """

    def __init__(self, threshold: float, eos_token_ids: torch.Tensor | None) -> None:
        self.threshold = threshold
        self._ends = set() if eos_token_ids is None else set(eos_token_ids.tolist())
        self._texts: dict[int, list[int]] = {}

    def read(self, known: RaggedIds, rows: Sequence[int], draft: Draft, room: Sequence[int]) -> list[View]:
        """The rows of the batch, which have these known tokens and drafts, in one transfer."""
        texts = [self._texts.setdefault(row, []) for row in rows]
        read = min(map(len, texts))
        new = known.ids[:, read : max(known.lengths)].to(draft.confidence.device)
        both = torch.cat([draft.confidence, draft.token_ids, new], dim=1).tolist()  # host sync: text and draft
        views = []
        for index, (row, text, length) in enumerate(zip(rows, texts, known.lengths, strict=True)):
            ids, drafted = list(map(int, both[index][len(draft) :])), draft.lengths[index]
            text += ids[len(draft) :][len(text) - read : length - read]
            sure = self._sure(ids[:drafted], both[index][:drafted], room[index])
            views.append(View(row, text, ids[:drafted], sure, room[index], both[index][:drafted]))
        return views

    def _sure(self, drafted: list[int], confidence: list[float], room: int) -> int | None:
        if any(value != value for value in confidence):
            return None
        sure = next((place for place, value in enumerate(confidence) if value < self.threshold), len(drafted))
        is_over = sure >= room or (sure > 0 and drafted[sure - 1] in self._ends)
        return None if is_over else sure


class MatchTrust:
    """How likely the token after a match of some length is right: at first as if the match were that number of
    confirmations after three rejections; then by what the target confirmed."""

    def __init__(self) -> None:
        self._calibration = OnlineCalibration()

    def probability(self, match: int) -> float:
        return self._calibration.probability(0, self._prior(match))

    def observe(self, match: int, is_confirmed: bool) -> None:
        """Learns whether the target confirmed the first token after such a match."""
        self._calibration.observe(0, self._prior(match), is_confirmed)

    def _prior(self, match: int) -> float:
        length = min(match, LONGEST_MATCH)
        return length / (length + 3)


def continued(draft: Draft, suggestions: Sequence[Sequence[Suggestion]]) -> Draft:
    """The draft with the most trusted suggestion of each sequence: at its end, or from its first unsure token on, if
    the suggestion is the better guess there."""
    confidence = draft.confidence.tolist()  # host sync: the unsure tokens
    used = []
    for offered, values, length in zip(suggestions, confidence, draft.lengths, strict=True):
        best = max(offered, key=lambda each: each.trust, default=None)
        is_better = best is not None and (best.start == length or best.trust > values[best.start])
        used.append(best if is_better else None)
    return _joined(draft, used) if any(used) else draft


def _joined(draft: Draft, suggestions: Sequence[Suggestion | None]) -> Proposal:
    """Each sequence's draft up to its suggestion, and then that. A suggestion's q is one-hot."""
    rows = list(enumerate(zip(suggestions, draft.lengths, strict=True)))
    lengths = [length if each is None else each.start + len(each.token_ids) for _, (each, length) in rows]
    missing = max(max(lengths) - len(draft), 0)
    token_ids, confidence = pad(draft.token_ids, (0, missing)), pad(draft.confidence, (0, missing), value=1.0)
    probs = None if draft.probs is None else pad(draft.probs, (0, 0, 0, missing))
    for row, (each, _) in rows:
        if each is not None:
            places = slice(each.start, lengths[row])
            token_ids[row, places] = torch.tensor(each.token_ids, device=token_ids.device)
            if probs is not None:
                probs[row, each.start :] = 0
                probs[row, places] = one_hot(token_ids[row, places], probs.shape[-1]).to(probs)
    longest = max(lengths)
    drafted = [length if each is None else each.start for _, (each, length) in rows]
    own = draft.own if isinstance(draft, Proposal) else drafted
    return Proposal(
        token_ids[:, :longest],
        confidence[:, :longest],
        draft.passes,
        draft.host_reads,
        None if probs is None else probs[:, :longest],
        lengths,
        own=tuple(map(min, own, drafted)),
        suggestions=tuple(() if each is None else (each,) for each in suggestions),
        chosen=tuple(drafted),
    )
