"""What the text itself suggests: the tokens that followed its end where that end stood before.

Prompt lookup finds them without a model, and is strong where an answer repeats its prompt. Here they continue a draft:
from its first unsure token on, if the text is the better guess there (as the tail of a block draft published by
vllm-uno, 1.53x to 1.68x).
"""

from __future__ import annotations

from .suffixes import SuffixAutomaton
from .suggestion import MatchTrust, Suggestion, View

SHORTEST_MATCH = 2  # tokens


class Lookup:
    """Suggestions for the sequences of one generation, of up to `count` tokens each."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.trust = MatchTrust()
        self._texts: dict[int, SuffixAutomaton] = {}  # by row of the batch

    def suggest(self, view: View) -> Suggestion | None:
        """What may follow the sure tokens of a draft."""
        text = self._texts.setdefault(view.row, SuffixAutomaton())
        text.extend(view.text[len(text.text) :])
        if view.sure is None:
            return None
        match = text.following(view.drafted[: view.sure], min(self.count, view.room - view.sure))
        if match.length < SHORTEST_MATCH:
            return None
        return Suggestion(view.sure, match.token_ids, match.length, self.trust.probability(match.length), "lookup")
