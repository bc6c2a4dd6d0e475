"""Where the end of a text stood before: a suffix automaton, which takes a step per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Match(NamedTuple):
    """What followed the longest end of a text that stood in it before."""

    length: int  # of that end
    token_ids: list[int]


class SuffixAutomaton:
    """The substrings of a growing text (Blumer and others, 1985), each state those that end at the same places.

    A new token takes constant time on average; so does each token of a query.
    """

    def __init__(self) -> None:
        self.text: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]  # of the state's longest substring
        self._end = [0]  # of its first occurrence, exclusive
        self._last = 0  # the state of the whole text

    def extend(self, token_ids: Sequence[int]) -> None:
        """The text grows."""
        for token in token_ids:
            self._append(token)

    def _append(self, token: int) -> None:
        self.text.append(token)
        new = self._add(self._length[self._last] + 1, {}, 0, len(self.text))
        state, self._last = self._last, new
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = new
            state = self._link[state]
        if state < 0:
            return
        following = self._next[state][token]
        if self._length[following] > self._length[state] + 1:  # only its shorter substrings end here, too
            long = following
            following = self._add(self._length[state] + 1, dict(self._next[long]), self._link[long], self._end[long])
            self._link[long] = following
            while state >= 0 and self._next[state].get(token) == long:
                self._next[state][token] = following
                state = self._link[state]
        self._link[new] = following

    def _add(self, length: int, following: dict[int, int], link: int, end: int) -> int:
        self._next.append(following)
        self._link.append(link)
        self._length.append(length)
        self._end.append(end)
        return len(self._link) - 1

    def following(self, tail: Sequence[int], count: int) -> Match:
        """What followed the longest end of the text and `tail` that stands in the text before its own end: up to
        `count` tokens. Of several places the first."""
        state = self._last
        length = self._length[state]
        for token in tail:
            while state > 0 and token not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            if token in self._next[state]:
                state, length = self._next[state][token], length + 1
        while state > 0 and self._end[state] == len(self.text):  # nothing followed it
            state = self._link[state]
            length = self._length[state]
        if state <= 0:
            return Match(0, [])
        return Match(length, self.text[self._end[state] : self._end[state] + count])
