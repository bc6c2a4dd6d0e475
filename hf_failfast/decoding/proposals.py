"""Makes proposals of drafts: the best paths through their candidates, what text and rejected drafts suggest, trees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul

from ..config import FailFastConfig
from ..drafters import Draft
from ..engine.kernels.reference import RowOutcome
from ..engine.ragged import RaggedIds
from ..policies.base import Calibration, RowPrices
from .lookup import Lookup
from .path_search import PathSearch
from .reuse import Reuse
from .stats import SpecDecodingStats
from .stopping import StopRules
from .suggestion import Proposal, Reader, Suggestion, View, continued
from .trees import TreeDraft, Trees


@dataclass
class Proposals:
    """What is proposed besides the drafter's own drafts, in one generation; each part is None where it is off.

    calibration: that of a length policy which weighs proposals; None: all that the options ask for is proposed.
    """

    reader: Reader
    trees: Trees | None
    lookup: Lookup | None
    reuse: Reuse | None
    paths: PathSearch | None = None
    calibration: Calibration | None = None
    views: Sequence[View] = ()  # of the round

    @classmethod
    def of(
        cls, config: FailFastConfig, stops: StopRules, has_trees: bool, calibration: Calibration | None = None
    ) -> Proposals:
        """What the options ask for. has_trees: whether they ask for trees, and the target takes them."""
        trees = Trees(config.most_nodes, config.self_selection, bool(config.draft_tree)) if has_trees else None
        if trees is not None and calibration is not None:
            trees.calibration = calibration
        return cls(
            Reader(config.confidence_threshold, stops.eos_token_ids),
            trees,
            Lookup(config.draft_lookup) if config.draft_lookup else None,
            Reuse() if config.draft_reuse else None,
            PathSearch(stops.eos_token_ids) if config.searches_paths else None,
            calibration,
        )

    @property
    def num_alternatives(self) -> int:
        """How many of them the drafter is asked for at each position."""
        asking = self.trees or self.paths
        return 0 if asking is None else asking.num_alternatives

    @property
    def _sources(self) -> list[Lookup | Reuse]:
        return [source for source in (self.lookup, self.reuse) if source is not None]

    def without_draft(
        self, known: RaggedIds, rows: Sequence[int], room: Sequence[int], prices: RowPrices | None
    ) -> list[list[float]]:
        """How likely the first 1, 2, ... tokens are right that would be proposed for each sequence without a draft."""
        if not self._sources or prices is None:
            return []
        self.views = self.reader.read(known, rows, Draft.empty(known), room)
        return [
            max((list(self._chances(view, each)) for each in self._suggestions(view, prices)), key=sum, default=[])
            for view in self.views
        ]

    def extend(
        self,
        draft: Draft,
        known: RaggedIds,
        rows: Sequence[int],
        room: Sequence[int],
        prices: RowPrices | None = None,
    ) -> Draft:
        """The proposal for the sequences `rows` of the batch, with these known tokens, drafts, and room for tokens.

        prices: what every token of it must be worth; None: as much is proposed as the options allow.
        """
        if self.paths is not None and self.paths.takes(draft):
            draft = self.paths.search(draft, self.reader.read(known, rows, draft, room))
        suggestions: list[list[Suggestion]] = []
        if self._sources:
            self.views = self.reader.read(known, rows, draft, room)
            suggestions = [self._suggestions(view, prices) for view in self.views]
        if self.trees is not None and self.trees.takes(draft):
            tree = self.trees.grow(draft, suggestions, prices)
            if prices is None or self.trees.won > prices.surplus(len(tree), len(draft)):
                return tree
        return continued(draft, suggestions) if any(suggestions) else draft

    def observe(self, draft: Draft, outcome: Sequence[RowOutcome], stats: SpecDecodingStats) -> None:
        """Learns what was accepted of the proposal, and counts it."""
        confirmed = draft.confirmed(outcome) if isinstance(draft, Proposal) else [row.accepted for row in outcome]
        if isinstance(draft, TreeDraft):
            stats.observe_trees(draft.lengths, [row.accepted for row in outcome])
            if self.trees is not None and self.calibration is None:  # the policy learns by itself
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

    def _source(self, suggestion: Suggestion) -> Lookup | Reuse | None:
        source: Lookup | Reuse | None = getattr(self, suggestion.source)
        return source

    def _suggestions(self, view: View, prices: RowPrices | None) -> list[Suggestion]:
        """What may follow the view's sure tokens; with prices as much of it as is worth its own."""
        offered = [each for source in self._sources if (each := source.suggest(view))]
        if prices is None:
            return offered
        kept = ((each, self._num_worth(view, each, prices)) for each in offered)
        return [each._replace(token_ids=each.token_ids[:count]) for each, count in kept if count]

    def _num_worth(self, view: View, suggestion: Suggestion, prices: RowPrices) -> int:
        """How many tokens of the suggestion win the most by their verification."""
        chances = enumerate(self._chances(view, suggestion))
        gains = [prices.gain(chance, suggestion.start + step, in_tree=False) for step, chance in chances]
        won = list(accumulate(gains, initial=0.0))
        return won.index(max(won))

    def _chances(self, view: View, suggestion: Suggestion) -> Iterator[float]:
        """How likely the first 1, 2, ... tokens of the suggestion are right, those of the draft before it included."""
        source = self._source(suggestion)
        assert source is not None and self.calibration is not None
        sure = [self.calibration.probability(*each) for each in enumerate(view.confidence[: suggestion.start])]
        steps = [source.trust.probability(suggestion.match + step) for step in range(len(suggestion.token_ids))]
        return (prod(sure) * chance for chance in accumulate(steps, mul))

    def _learn(self, suggestion: Suggestion, accepted: int | None) -> None:
        source = self._source(suggestion)
        if accepted is None or source is None:
            return
        judged = 1 if self.calibration is None else min(accepted + 1, len(suggestion.token_ids))
        for step in range(judged):
            source.trust.observe(suggestion.match + step, accepted > step)
