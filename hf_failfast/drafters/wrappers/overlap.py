"""The next draft, made while the target verifies this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...config import FailFastConfig
from ...engine.ragged import RaggedIds
from ...policies.base import LengthPolicy
from ...policies.confidence import ConfidenceThreshold
from ..base import Draft, DraftSession
from .threads import InThread


@dataclass(frozen=True)
class Ahead:
    """A draft in the making, after a text that is not known yet.

    text: the text with the whole draft that is being verified. start: tokens of the shortest sequence that were known
    before. lengths: of that draft.
    """

    text: RaggedIds
    start: int
    lengths: list[int]
    work: InThread


class OverlapSession(DraftSession):
    """Drafts the likeliest next round in a thread while the target verifies: speculative speculative decoding (arXiv
    2603.03251), with the drafter on a CPU DuoDecoding (arXiv 2503.00784).

    The likeliest outcome is that the whole draft is accepted. So the inner session drafts on after it; the first token
    of that is its guess of the target's own next token. If all sequences go on as guessed, the rest is the next draft,
    already made; else the session takes it back and drafts anew. Which of the two happens depends on the text and the
    guess alone, never on the rest, so that drawn drafts stay what they are: draws from the distributions beside them.

    rule: of the draft's length, which the guess comes on top of.
    timeout: seconds to wait for the thread at most; None: as long as it takes.
    overlap_hits: rounds whose draft had been made before.
    """

    def __init__(self, session: DraftSession, rule: ConfidenceThreshold, timeout: float | None = None) -> None:
        self.session = session
        self.timeout = timeout
        self.overlap_hits = 0
        with_guess = FailFastConfig(
            confidence_threshold=rule.confidence_threshold,
            chunk_length=rule.chunk_length + 1,
            max_draft_length=rule.max_draft_length + 1,
        )
        self._policy = ConfidenceThreshold(with_guess)
        self._ahead: Ahead | None = None
        self._guessed = 0  # tokens of the session's last draft that were part of the text before this round's
        self._wasted = 0  # passes for drafts that were taken back

    def draft(self, text: RaggedIds, policy: LengthPolicy, room: Sequence[int]) -> Draft:
        made = self._made_for(text)
        if made is None:
            draft = self.session.draft(text, policy, room)
        elif policy.start_draft(len(room), max(text.lengths), max(room)):
            self.overlap_hits += 1
            self._guessed = 1
            draft = _without_guess(made, room)
        else:
            self.session.accept([1] * len(room))
            draft = self.session.draft(text, self._policy, [0] * len(room))
        if draft.passes:
            draft, self._wasted = replace(draft, passes=draft.passes + self._wasted), 0
            self._draft_ahead(text, draft, room)
        return draft

    def accept(self, counts: Sequence[int]) -> None:
        guessed, self._guessed = self._guessed, 0
        if self._ahead is None:
            self.session.accept([count + guessed for count in counts])
            return
        self._ahead.work.result(self.timeout)
        if list(counts) != self._ahead.lengths:
            self._take_back(counts)

    def overtaken(self, counts: Sequence[int]) -> None:
        if self._ahead is not None and any(counts):
            self._take_back(self._ahead.lengths)
        if self._ahead is None:
            self.session.overtaken(counts)

    def keep(self, rows: Sequence[int]) -> None:
        if self._ahead is not None:
            self._take_back(self._ahead.lengths)
        self.session.keep(rows)

    def close(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.work.wait(self.timeout)
            if ahead.work.is_done:
                self.session.accept([0] * len(ahead.lengths))
        self.session.close()

    def _draft_ahead(self, text: RaggedIds, draft: Draft, room: Sequence[int]) -> None:
        """Begins the next draft, if there is room for the guess and more."""
        left = [limit - length for limit, length in zip(room, draft.lengths, strict=True)]
        if min(left) < 2 or not min(draft.lengths):
            return
        # Nothing but the drafter's own device is used in the thread.
        ids = draft.token_ids
        whole = RaggedIds(text.ids.to(ids.device), text.lengths).append(ids, draft.lengths)
        work = InThread(self.session.draft, whole, self._policy, left)
        self._ahead = Ahead(whole, min(text.lengths), list(draft.lengths), work)

    def _take_back(self, counts: Sequence[int]) -> None:
        """Forgets the draft made ahead: of the one before it the first `counts[b]` tokens were accepted."""
        ahead, self._ahead = self._ahead, None
        assert ahead is not None
        self._wasted += ahead.work.result(self.timeout).passes
        self.session.accept([count - length for count, length in zip(counts, ahead.lengths, strict=True)])

    def _made_for(self, text: RaggedIds) -> Draft | None:
        """The draft made ahead, if it goes on after the guess and the text is the one that was guessed."""
        if self._ahead is None:
            return None
        made = self._ahead.work.result(self.timeout)
        if len(made) > 1 and min(made.lengths) and self._is_guessed(text, self._ahead, made):
            self._ahead = None
            return replace(made, host_reads=made.host_reads + 1)
        self._take_back(self._ahead.lengths)
        return None

    @staticmethod
    def _is_guessed(text: RaggedIds, ahead: Ahead, made: Draft) -> bool:
        if text.lengths != [length + 1 for length in ahead.text.lengths]:
            return False
        guessed = ahead.text.append(made.token_ids[:, :1])
        width = max(text.lengths) - ahead.start
        starts = [ahead.start] * len(text.lengths)
        own = text.window(starts, width).to(guessed.ids.device)
        places = torch.arange(ahead.start, max(text.lengths), device=own.device)
        is_after = places >= torch.tensor(text.lengths, device=own.device)[:, None]
        return bool(((own == guessed.window(starts, width)) | is_after).all())  # host sync: as guessed or not


def _without_guess(draft: Draft, room: Sequence[int]) -> Draft:
    """The draft without its first token, cut to the room; distributions and alternatives move with it."""
    lengths = [max(min(length - 1, limit), 0) for length, limit in zip(draft.lengths, room, strict=True)]
    kept = slice(1, 1 + max(lengths))
    return replace(
        draft,
        token_ids=draft.token_ids[:, kept],
        confidence=draft.confidence[:, kept],
        probs=None if draft.probs is None else draft.probs[:, kept],
        lengths=lengths,
        alternatives=None if draft.alternatives is None else draft.alternatives.map(lambda values: values[:, kept]),
    )
