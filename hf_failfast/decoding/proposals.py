"""Makes proposals of drafts: the tail that the text suggests, and trees."""

from __future__ import annotations

from collections.abc import Sequence

from ..drafters import Draft
from ..engine.kernels.reference import RowOutcome
from ..engine.ragged import RaggedIds
from .lookup import Lookup
from .proposal import Proposal
from .stats import SpecDecodingStats
from .trees import TreeDraft, Trees


class Proposals:
    """What is proposed besides the drafter's own drafts, in one generation; each part is None where it is off."""

    def __init__(self, trees: Trees | None, lookup: Lookup | None) -> None:
        self.trees = trees
        self.lookup = lookup

    @property
    def num_alternatives(self) -> int:
        """How many of them the drafter is asked for at each position."""
        return 0 if self.trees is None else self.trees.num_alternatives

    def extend(self, draft: Draft, known: RaggedIds, rows: Sequence[int], room: Sequence[int]) -> Draft:
        """The proposal for the sequences `rows` of the batch, with these known tokens, drafts, and room for tokens."""
        suggestions = [] if self.lookup is None else self.lookup.suggest(known, rows, draft, room)
        if self.trees is not None and self.trees.takes(draft):
            return self.trees.grow(draft, suggestions)
        return self.lookup.continued(draft, suggestions) if self.lookup is not None else draft

    def observe(self, draft: Draft, outcome: Sequence[RowOutcome], stats: SpecDecodingStats) -> None:
        """Learns what was accepted of the proposal, and counts it."""
        if not isinstance(draft, Proposal):
            return
        others = draft.accepted_others(outcome)
        if isinstance(draft, TreeDraft):
            stats.observe_trees(draft.lengths, [row.accepted for row in outcome])
            if self.trees is not None:
                self.trees.observe(draft.accepted_own(outcome))
        if self.lookup is not None:
            own = draft.accepted_own(outcome)
            self.lookup.observe([count + more for count, more in zip(own, others, strict=True)])
            stats.lookup_accepted += sum(others)
