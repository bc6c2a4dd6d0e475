"""Drafts for sequences that come, move, wait and end: they are known by their tokens, not by a number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..drafters.base import Draft, DraftSession
from ..engine.ragged import RaggedIds
from ..policies.base import LengthPolicy

Tokens = NDArray[np.int64]  # (n,)
# Starts a session for that many sequences.
StartSession = Callable[[int], DraftSession]

# Fewer tokens in common are read again sooner than they are copied.
LEAST_SHARED = 16


@dataclass
class Running:
    """A sequence of the running session: its tokens at the last draft, and what was drafted after them."""

    tokens: Tokens
    drafted: list[int]

    def num_accepted(self, tokens: Tokens) -> int | None:
        """How many drafted tokens a longer text took over; None if it does not continue this one."""
        length = len(self.tokens)
        if len(tokens) <= length or tokens[length - 1] != self.tokens[-1]:
            return None
        if not np.array_equal(tokens[:length], self.tokens):
            return None
        new = tokens[length:-1]
        same = [int(token) == drafted for token, drafted in zip(new, self.drafted, strict=False)]
        return same.index(False) if False in same else len(same)


@dataclass
class Waiting:
    """A sequence that does not run now: its tokens, and a session that remembers all but the last of them."""

    tokens: Tokens
    session: DraftSession


class SequenceDrafter:
    """One drafter session for all sequences that run, rebuilt from copied K/V when one comes or goes.

    A sequence that is missing in a call waits, its K/V apart; the least recently used is forgotten when more than
    `num_kept` wait. A text that begins like one of them, as the next turn of a chat does, goes on from what the two
    share.
    """

    def __init__(self, start: StartSession, num_kept: int) -> None:
        self._start = start
        self._num_kept = num_kept
        self._session: DraftSession | None = None
        self._policy: LengthPolicy | None = None  # of the last draft
        self._running: list[Running] = []
        self._waiting: OrderedDict[int, Waiting] = OrderedDict()
        self._num_seen = 0  # of the sequences that waited so far: the key of the next

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def draft(self, texts: Sequence[Tokens], policy: LengthPolicy, room: Sequence[int]) -> Draft:
        """Drafts up to `room[i]` tokens after each text, none twice; the draft's rows are the texts in their order."""
        matches = self._match(texts)
        self._settle(texts, matches)
        order = list(range(len(texts)))
        if self._session is not None and len(texts) == len(self._running) and None not in matches:
            order.sort(key=lambda index: matches[index] or 0)
        else:
            self._rebuild(texts, matches)
        assert self._session is not None
        rows = [torch.from_numpy(texts[index]) for index in order]
        text = RaggedIds(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), [len(row) for row in rows])
        draft = self._session.draft(text, policy, [room[index] for index in order])
        self._policy = policy
        tokens = draft.token_ids.tolist()
        self._running = [Running(texts[index], tokens[row][: draft.lengths[row]]) for row, index in enumerate(order)]
        return _reordered(draft, np.argsort(order).tolist())

    def forget(self) -> None:
        """Drops all that is remembered, and with it the memory it takes."""
        self._session, self._policy, self._running = None, None, []
        self._waiting.clear()

    def _match(self, texts: Sequence[Tokens]) -> list[int | None]:
        """For each text the running sequence that it continues; each is taken once."""
        free = list(range(len(self._running)))
        found: list[int | None] = []
        for index, text in enumerate(texts):
            # Rows seldom move: the sequence of the same row is tried first.
            for row in sorted(free, key=lambda row: row != index):
                if self._running[row].num_accepted(text) is not None:
                    found.append(row)
                    free.remove(row)
                    break
            else:
                found.append(None)
        return found

    def _settle(self, texts: Sequence[Tokens], matches: Sequence[int | None]) -> None:
        """Tells session and policy what was accepted of the last drafts, and makes it the sequences' text. Of a
        sequence that is gone nothing is known: for the session nothing was accepted, for the policy as much as of the
        others."""
        if self._session is None:
            return
        counts: list[int | None] = [None] * len(self._running)
        for text, row in zip(texts, matches, strict=True):
            if row is not None:
                running = self._running[row]
                counts[row] = running.num_accepted(text)
                running.tokens = text[: len(running.tokens) + (counts[row] or 0)]
        known = [count for count in counts if count is not None]
        if known and self._policy is not None:
            mean = round(sum(known) / len(known))
            guesses = [min(mean, len(running.drafted)) for running in self._running]
            accepted = [guess if count is None else count for count, guess in zip(counts, guesses, strict=True)]
            self._policy.observe(accepted)
        self._session.accept([count or 0 for count in counts])

    def _rebuild(self, texts: Sequence[Tokens], matches: Sequence[int | None]) -> None:
        """A session for these texts, with what the running one and the waiting ones remember of them."""
        old, running = self._session, self._running
        for row in set(range(len(running))) - set(matches):
            assert old is not None
            self._wait(running[row].tokens, old, row)
        session = self._start(len(texts))
        for row, (text, match) in enumerate(zip(texts, matches, strict=True)):
            if match is not None:
                assert old is not None
                _inherit(session, row, old, match, len(running[match].tokens))
            else:
                self._resume(text, session, row)
        self._session = session

    def _wait(self, tokens: Tokens, session: DraftSession, row: int) -> None:
        if not self._num_kept:
            return
        alone = self._start(1)
        _inherit(alone, 0, session, row, len(tokens))
        self._waiting[self._num_seen] = Waiting(tokens, alone)
        self._num_seen += 1
        if len(self._waiting) > self._num_kept:
            self._waiting.popitem(last=False)

    def _resume(self, text: Tokens, session: DraftSession, row: int) -> None:
        """Gives a new row what a waiting sequence shares with its text."""
        shared = {key: _num_shared(waiting.tokens, text[:-1]) for key, waiting in self._waiting.items()}
        best = max(shared, key=lambda key: shared[key], default=None)
        if best is None or shared[best] < LEAST_SHARED:
            return
        waiting = self._waiting[best]
        _inherit(session, row, waiting.session, 0, shared[best])
        if shared[best] == len(waiting.tokens):
            del self._waiting[best]  # the same sequence goes on
        else:
            self._waiting.move_to_end(best)


def _inherit(session: DraftSession, row: int, source: DraftSession, source_row: int, num_tokens: int) -> None:
    mine, at = session.row(row)
    theirs, there = source.row(source_row)
    mine.inherit(theirs, num_tokens, (at, there))


def _num_shared(first: Tokens, second: Tokens) -> int:
    """The length of the common prefix."""
    width = min(len(first), len(second))
    differs = np.flatnonzero(first[:width] != second[:width])
    return int(differs[0]) if len(differs) else width


def _reordered(draft: Draft, rows: list[int]) -> Draft:
    return Draft(
        draft.token_ids[rows],
        draft.confidence[rows],
        draft.passes,
        draft.host_reads,
        lengths=[draft.lengths[row] for row in rows],
    )
