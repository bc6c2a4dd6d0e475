"""What the text itself suggests: the tokens that followed its end where that end stood before.

Prompt lookup finds them without a model, and is strong where an answer repeats its prompt. Here they continue a draft:
from its first unsure token on, if the text is the better guess there (as the tail of a block draft published by
vllm-uno, 1.53x to 1.68x).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import one_hot, pad

from ..drafters import Draft
from ..engine.ragged import RaggedIds
from ..policies.calibration import OnlineCalibration
from .proposal import Proposal
from .suffixes import SuffixAutomaton

SHORTEST_MATCH = 2  # tokens
LONGEST_MATCH = 32  # longer ones are trusted alike


class Suggestion(NamedTuple):
    """Tokens that may follow the first `start` tokens of a draft, suggested by a match of some length."""

    start: int
    token_ids: list[int]
    match: int


class MatchTrust:
    """How likely the token after a match of some length is right: at first by the rule of succession, as if the match
    were that number of confirmations; then by what the target confirmed."""

    def __init__(self) -> None:
        self._calibration = OnlineCalibration()

    def probability(self, match: int) -> float:
        return self._calibration.probability(0, self._prior(match))

    def observe(self, match: int, is_confirmed: bool) -> None:
        """Learns whether the target confirmed the first token after such a match."""
        self._calibration.observe(0, self._prior(match), is_confirmed)

    def _prior(self, match: int) -> float:
        length = min(match, LONGEST_MATCH)
        return (length + 1) / (length + 2)


class Lookup:
    """Suggestions for the sequences of one generation, of up to `count` tokens each.

    threshold: the confidence from which on a draft's token is sure.
    """

    def __init__(self, count: int, threshold: float, eos_token_ids: torch.Tensor | None) -> None:
        self.count = count
        self.threshold = threshold
        self._ends = set() if eos_token_ids is None else set(eos_token_ids.tolist())
        self._texts: dict[int, SuffixAutomaton] = {}  # by row of the batch
        self.trust = MatchTrust()
        self._made: list[Suggestion | None] = []

    def suggest(
        self, known: RaggedIds, rows: Sequence[int], draft: Draft, room: Sequence[int]
    ) -> list[Suggestion | None]:
        """For each of the rows, which have these known tokens and drafts; none where nothing is suggested."""
        texts = [self._texts.setdefault(row, SuffixAutomaton()) for row in rows]
        read = min(len(text.text) for text in texts)
        new = known.ids[:, read : max(known.lengths)].to(draft.confidence.device)
        both = torch.cat([draft.confidence, draft.token_ids, new], dim=1).tolist()  # host sync: text and draft
        self._made = []
        for text, length, values, drafted, limit in zip(texts, known.lengths, both, draft.lengths, room, strict=True):
            ids = list(map(int, values[len(draft) :]))
            text.extend(ids[len(draft) :][len(text.text) - read : length - read])
            self._made.append(self._after(text, ids[:drafted], values[:drafted], limit))
        return self._made

    def continued(self, draft: Draft, suggestions: Sequence[Suggestion | None]) -> Draft:
        """The draft with its suggestions after its sure tokens: at its end, or instead of the unsure rest where the
        text is the better guess."""
        confidence = draft.confidence.tolist()  # host sync: the unsure tokens
        used = []
        for suggestion, values, drafted in zip(suggestions, confidence, draft.lengths, strict=True):
            is_used = suggestion is not None and (
                suggestion.start == drafted or self.is_better(suggestion, values[suggestion.start])
            )
            used.append(suggestion if is_used else None)
        self._made = used
        return _joined(draft, used) if any(used) else draft

    def _after(
        self, text: SuffixAutomaton, drafted: list[int], confidence: list[float], room: int
    ) -> Suggestion | None:
        sure = next((place for place, value in enumerate(confidence) if value < self.threshold), len(drafted))
        is_broken = any(value != value for value in confidence)
        if is_broken or room <= sure or (drafted[:sure] and drafted[sure - 1] in self._ends):
            return None
        match = text.following(drafted[:sure], min(self.count, room - sure))
        if match.length < SHORTEST_MATCH:
            return None
        return Suggestion(sure, match.token_ids, match.length)

    def is_better(self, suggestion: Suggestion, confidence: float) -> bool:
        """Whether the suggestion is the better guess at its place than a token of this confidence."""
        return self.trust.probability(suggestion.match) > confidence

    def observe(self, accepted: Sequence[int]) -> None:
        """The target has accepted that number of tokens in line with each suggestion: those before it, then its."""
        for suggestion, count in zip(self._made, accepted, strict=True):
            if suggestion is not None and count >= suggestion.start:
                self.trust.observe(suggestion.match, count > suggestion.start)


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
    return Proposal(
        token_ids[:, :longest],
        confidence[:, :longest],
        draft.passes,
        draft.host_reads,
        None if probs is None else probs[:, :longest],
        lengths,
        own=tuple(length if each is None else each.start for _, (each, length) in rows),
    )
