"""Makes proposals of drafts: the best paths through their candidates, what text and rejected drafts suggest, trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import FailFastConfig
from ..drafters import Draft
from ..engine.kernels.reference import RowOutcome
from ..engine.ragged import RaggedIds
from .lookup import Lookup
from .path_search import PathSearch
from .reuse import Reuse
from .stats import SpecDecodingStats
from .stopping import StopRules
from .suggestion import Proposal, Reader, Suggestion, View, continued
from .trees import TreeDraft, Trees


@dataclass
class Proposals:
    """What is proposed besides the drafter's own drafts, in one generation; each part is None where it is off."""

    reader: Reader
    trees: Trees | None
    lookup: Lookup | None
    reuse: Reuse | None
    paths: PathSearch | None = None
    views: Sequence[View] = ()  # of the round

    @classmethod
    def of(cls, config: FailFastConfig, stops: StopRules, has_trees: bool) -> Proposals:
        """What the options ask for. has_trees: whether they ask for trees, and the target takes them."""
        return cls(
            Reader(config.confidence_threshold, stops.eos_token_ids),
            Trees(config.most_nodes, config.self_selection, bool(config.draft_tree)) if has_trees else None,
            Lookup(config.draft_lookup) if config.draft_lookup else None,
            Reuse() if config.draft_reuse else None,
            PathSearch(stops.eos_token_ids) if config.searches_paths else None,
        )

    @property
    def num_alternatives(self) -> int:
        """How many of them the drafter is asked for at each position."""
        asking = self.trees or self.paths
        return 0 if asking is None else asking.num_alternatives

    def extend(self, draft: Draft, known: RaggedIds, rows: Sequence[int], room: Sequence[int]) -> Draft:
        """The proposal for the sequences `rows` of the batch, with these known tokens, drafts, and room for tokens."""
        if self.paths is not None and self.paths.takes(draft):
            draft = self.paths.search(draft, self.reader.read(known, rows, draft, room))
        suggestions: list[list[Suggestion]] = []
        sources = [source for source in (self.lookup, self.reuse) if source is not None]
        if sources:
            self.views = self.reader.read(known, rows, draft, room)
            suggestions = [[each for source in sources if (each := source.suggest(view))] for view in self.views]
        if self.trees is not None and self.trees.takes(draft):
            return self.trees.grow(draft, suggestions)
        return continued(draft, suggestions) if sources else draft

    def observe(self, draft: Draft, outcome: Sequence[RowOutcome], stats: SpecDecodingStats) -> None:
        """Learns what was accepted of the proposal, and counts it."""
        confirmed = draft.confirmed(outcome) if isinstance(draft, Proposal) else [row.accepted for row in outcome]
        if isinstance(draft, TreeDraft):
            stats.observe_trees(draft.lengths, [row.accepted for row in outcome])
            if self.trees is not None:
                self.trees.observe(confirmed)
        if isinstance(draft, Proposal):
            for place, (row, of_row) in enumerate(zip(outcome, draft.suggestions, strict=False)):
                for suggestion in of_row:
                    self._learn(suggestion, draft.accepted_of(place, row, suggestion))
                    stats.reused += len(suggestion.token_ids) * (suggestion.source == "reuse")
                stats.lookup_accepted += draft.accepted_from(place, row, "lookup")
                stats.reuse_accepted += draft.accepted_from(place, row, "reuse")
        if self.reuse is not None:
            for view, accepted in zip(self.views, confirmed, strict=True):
                if view.drafted:
                    self.reuse.reject(view.row, view.drafted[accepted:])

    def _learn(self, suggestion: Suggestion, accepted: int | None) -> None:
        source: Lookup | Reuse | None = getattr(self, suggestion.source)
        if accepted is not None and source is not None:
            source.trust.observe(suggestion.match, accepted > 0)
