"""Drafts that branch: a tree of tokens, grown best-first around the drafter's chain.

One pass of a diffusion drafter gives a distribution for every position that it fills. So a tree costs no further pass:
a branch takes another likely token at one position, and goes on with the tokens of the next ones (best-first trees
over one-pass marginals: arXiv 2604.12989, there for a drafter that was trained on its target).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import eq, mul
from typing import NamedTuple

import torch

from ..drafters import Draft
from ..engine.kernels.reference import RowOutcome
from ..engine.window import Tree
from ..policies.base import Calibration, RowPrices
from ..policies.calibration import OnlineCalibration
from .lattice import MOST_ALTERNATIVES, Column, columns_of
from .suggestion import Proposal, Source, Suggestion
from .verification import Branches

ROOT = -1
TEMPERATURES = (1.5, 1.0, 2.0, 0.7)  # of further drafts of a pass, in turn


class TokenTree:
    """Continuations of one sequence that share their beginnings. A node's parent comes before it.

    children: of the root and then of each node, in the order in which they were added: their nodes by token.
    suggested: the nodes that are no draws of the drafter's, and what suggested them.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.depths: list[int] = []
        self.ancestors: list[int] = []  # bits, the node's own included
        self.children: list[dict[int, int]] = [{}]
        self.suggested: dict[int, Source] = {}

    def __len__(self) -> int:
        return len(self.token_ids)

    def add(self, parent: int, token_id: int) -> int:
        """The parent's child of that token, which is new unless there is one."""
        siblings = self.children[parent + 1]
        if token_id not in siblings:
            node = siblings[token_id] = len(self)
            self.token_ids.append(token_id)
            self.depths.append(0 if parent == ROOT else self.depths[parent] + 1)
            self.ancestors.append((0 if parent == ROOT else self.ancestors[parent]) | 1 << node)
            self.children.append({})
        return siblings[token_id]

    def path(self, own: Sequence[int]) -> list[int]:
        """The nodes on which the tree agrees with the target's own tokens, after the root and after each node."""
        nodes = [ROOT]
        while (child := self.children[nodes[-1] + 1].get(own[nodes[-1] + 1])) is not None:
            nodes.append(child)
        return nodes[1:]


@dataclass(frozen=True)
class TreeDraft(Proposal):
    """A draft whose tokens are the nodes of a tree per sequence, (B, n); `lengths` are the trees' sizes.

    probs: (B, k, V), by depth: what the tokens of that depth were drawn from, if they were.
    own: how many of the first nodes are the drafter's own draft, one after the other.
    broken: whether a confidence of the drafter's is not a number.
    """

    trees: tuple[TokenTree, ...] = ()
    broken: tuple[bool, ...] = ()

    def accepted_own(self, outcome: Sequence[RowOutcome]) -> list[int]:
        return [_in_order(row.path or (), count) for row, count in zip(outcome, self.own, strict=True)]

    def accepted_of(self, place: int, row: RowOutcome, suggestion: Suggestion) -> int | None:
        path = row.path or ()
        if _in_order(path, self.own[place]) < suggestion.start:
            return None
        tokens = [self.trees[place].token_ids[node] for node in path[suggestion.start :]]
        return sum(accumulate(map(eq, tokens, suggestion.token_ids), mul))

    def accepted_from(self, place: int, row: RowOutcome, source: Source) -> int:
        return sum(self.trees[place].suggested.get(node) == source for node in row.path or ())

    @property
    def shape(self) -> Tree:
        """What a window needs to know."""
        depths = [tree.depths for tree in self.trees]
        ancestors = [[_signed(bits) for bits in tree.ancestors] for tree in self.trees]
        return Tree(*(_padded(rows, len(self), self.token_ids.device) for rows in (depths, ancestors)))

    @property
    def children(self) -> list[list[dict[int, int]]]:
        """Of each sequence, by the known tokens and then by node: the nodes drafted next, by token."""
        return [tree.children for tree in self.trees]

    def paths(self, own: Sequence[Sequence[int]]) -> list[list[int]]:
        """The nodes that agree with the target's own tokens (B, n + 1)."""
        return [tree.path(of_row) for tree, of_row in zip(self.trees, own, strict=True)]

    def branches(self, places: Sequence[int], rows: Sequence[Sequence[int]]) -> Branches | None:
        """What was drafted after the given rows (0: the known tokens, i + 1: node i) of the sequences `places`; None
        if it was not drawn."""
        if self.probs is None:
            return None
        device, last = self.probs.device, self.probs.shape[1] - 1
        tokens, drawn, depths = [], [], []
        for place, of_place in zip(places, rows, strict=True):
            tree = self.trees[place]
            children = [tree.children[row] if row <= len(tree) else {} for row in of_place]
            tokens += [list(each) for each in children]
            drawn += [[node not in tree.suggested for node in each.values()] for each in children]
            depths += [min(tree.depths[row - 1] + 1, last) if 0 < row <= len(tree) else 0 for row in of_place]
        width = max(map(len, tokens))
        shape = len(places), len(depths) // len(places)
        token_ids, is_drawn = _padded(tokens, width, device, value=-1), _padded(drawn, width, device).bool()
        depth = torch.tensor(depths, device=device).view(shape)
        sequence = torch.tensor(places, device=device)[:, None]
        return Branches(token_ids.view(*shape, -1), self.probs[sequence, depth], is_drawn.view(*shape, -1))

    def along(self, paths: Sequence[Sequence[int]]) -> tuple[Draft, torch.Tensor]:
        """The draft that is left when only the nodes of the paths are: a chain; and the rows (B, d + 1), of those
        after the known tokens and after each node (B, n + 1), that belong to it."""
        lengths = [len(path) for path in paths]
        rows = _padded([[0, *(node + 1 for node in path)] for path in paths], max(lengths) + 1, self.token_ids.device)
        token_ids = self.token_ids.gather(1, (rows[:, 1:] - 1).clamp(min=0)) if max(lengths) else self.token_ids[:, :0]
        confidence = self.confidence[:, : max(lengths)]
        return Draft(token_ids, confidence, self.passes, self.host_reads, None, lengths), rows


def _in_order(path: Sequence[int], length: int) -> int:
    """How many of the first nodes of a path are 0, 1, ... below `length`: those of the drafter's own chain."""
    return next((index for index, node in enumerate(path) if node != index or index >= length), len(path))


def _padded(rows: Sequence[Sequence[int]], width: int, device: torch.device, value: int = 0) -> torch.Tensor:
    padded = [[*row, *[value] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.long, device=device).view(len(rows), width)


def _signed(bits: int) -> int:
    """64 bits as int64 holds them."""
    return bits - (1 << 64) if bits >> 63 else bits


class Trees:
    """Makes trees of drafts, of up to `max_nodes` tokens; longer drafts stay what they are.

    The drafter's chain is in every tree, so that a tree never accepts less. The other nodes are added by the product
    of the calibrated probabilities along their paths, the likeliest first.

    For drawn drafts this is lossless as the shape depends on distributions alone, never on the tokens drawn, and the
    tokens of a node's children are successive draws from one distribution (`verification.choose_among`).

    num_drafts: drafts that are in every tree if there is room: the drafter's own, and others sampled on the host from
        the pass's distributions. branches: whether nodes are added one by one, too.
    """

    def __init__(self, max_nodes: int, num_drafts: int = 1, branches: bool = True) -> None:
        self.max_nodes = max_nodes
        self.num_drafts = num_drafts
        self.branches = branches
        self._chance = random.Random(0)  # its own: the text's samples do not depend on how it is drafted
        self.num_alternatives = min(max_nodes, MOST_ALTERNATIVES)
        self.calibration: Calibration = OnlineCalibration()
        self._confidence: list[list[float]] = [[]]  # of each sequence's draft
        self._prices: RowPrices | None = None
        self.won = 0.0  # tokens that the branches of the last trees are expected to add, per sequence

    def takes(self, draft: Draft) -> bool:
        """Whether there is a draft, and room for branches."""
        return draft.alternatives is not None and 0 < len(draft) < self.max_nodes

    def grow(
        self, draft: Draft, suggestions: Sequence[Sequence[Suggestion]] = (), prices: RowPrices | None = None
    ) -> TreeDraft:
        """The draft with branches; the suggestions for each sequence, if any, are the first of them. With prices a
        node must be worth its own."""
        columns = columns_of(draft)
        self._prices, self.won = prices, 0.0
        self._confidence = [row.confidence[:length] for row, length in zip(columns, draft.lengths, strict=True)]
        rows = zip(columns, draft.lengths, suggestions or [()] * len(columns), strict=True)
        trees = tuple(self._tree(*row) for row in rows)
        longest = max(map(len, trees))
        token_ids = _padded([tree.token_ids for tree in trees], longest, draft.token_ids.device)
        return TreeDraft(
            token_ids,
            torch.ones(token_ids.shape, device=token_ids.device),
            draft.passes,
            draft.host_reads + 1,
            draft.probs,
            [len(tree) for tree in trees],
            own=tuple(draft.lengths),
            suggestions=tuple(map(tuple, suggestions)),
            trees=trees,
            broken=tuple(any(value != value for value in row) for row in self._confidence),
        )

    def observe(self, num_accepted: Sequence[int]) -> None:
        """The target has confirmed `num_accepted[b]` tokens of sequence b's chain, and not the next one."""
        for confidence, accepted in zip(self._confidence, num_accepted, strict=False):
            for place, value in enumerate(confidence[: accepted + 1]):
                self.calibration.observe(place, value, place < accepted)

    def _tree(self, row: Column, length: int, suggestions: Sequence[Suggestion] = ()) -> TokenTree:
        tree = TokenTree()
        frontier = Frontier([self._chances(place, row) for place in range(length)])
        node, survival = ROOT, 1.0
        for depth in range(length):
            frontier.offer(survival, node, depth, 1)
            node = tree.add(node, row.token_ids[depth][0])
            survival *= frontier.chances[depth][0]
        for suggestion in suggestions:
            node = suggestion.start - 1
            for token_id in suggestion.token_ids:
                if token_id not in tree.children[node + 1]:
                    if len(tree) == self.max_nodes:
                        break
                    tree.suggested[len(tree)] = suggestion.source
                node = tree.add(node, token_id)
        for number in range(self.num_drafts - 1):
            self._add_sampled(tree, row, frontier.chances, TEMPERATURES[number % len(TEMPERATURES)])
        while self.branches and len(tree) < self.max_nodes and (best := frontier.pop()) is not None:
            if not self._is_worth(best.chance, tree):
                break
            self.won += best.chance / len(self._confidence)
            node = tree.add(best.parent, row.token_ids[best.depth][best.rank])
            frontier.offer(best.survival, best.parent, best.depth, best.rank + 1)
            frontier.offer(best.chance, node, best.depth + 1, 0)
        return tree

    def _is_worth(self, chance: float, tree: TokenTree) -> bool:
        """Whether a node with this chance of being accepted may be added."""
        return self._prices is None or self._prices.gain(chance, len(tree), in_tree=True) > 0

    def _add_sampled(self, tree: TokenTree, row: Column, chances: list[list[float]], temperature: float) -> None:
        """Adds a draft whose tokens are drawn place by place, until the tree is full or they are not worth a node."""
        node, chance = ROOT, 1.0
        for place in range(len(chances)):
            weights = [max(value, 0.0) ** (1 / temperature) for value in (row.confidence[place], *row.probs[place])]
            if not sum(weights) > 0:
                return
            (rank,) = self._chance.choices(range(len(weights)), weights)
            token_id, chance = row.token_ids[place][rank], chance * chances[place][rank]
            if token_id not in tree.children[node + 1]:
                if len(tree) == self.max_nodes or not self._is_worth(chance, tree):
                    return
                self.won += chance / len(self._confidence)
            node = tree.add(node, token_id)

    def _chances(self, place: int, row: Column) -> list[float]:
        """How likely each candidate at a place is right: the own token's calibrated confidence, and of the rest the
        others' share."""
        confidence = row.confidence[place]
        own = self.calibration.probability(place, confidence)
        rest = (1 - own) / (1 - confidence) if confidence < 1 else 0.0
        return [own, *(min(rest * prob, own) for prob in row.probs[place])]


class Candidate(NamedTuple):
    """A node that might be added: the token of a rank at its depth, after a parent."""

    chance: float  # of the whole path
    survival: float  # of the path to the parent
    parent: int
    depth: int
    rank: int


class Frontier:
    """The candidates for the next node, by the chance of their path.

    chances: by depth and rank.
    """

    def __init__(self, chances: list[list[float]]) -> None:
        self.chances = chances
        self._heap: list[tuple[float, int, Candidate]] = []

    def offer(self, survival: float, parent: int, depth: int, rank: int) -> None:
        """Adds a candidate if there is a token of that depth and rank."""
        if depth < len(self.chances) and rank < len(self.chances[depth]):
            chance = survival * self.chances[depth][rank]
            if chance > 0:
                entry = Candidate(chance, survival, parent, depth, rank)
                heapq.heappush(self._heap, (-chance, len(self._heap), entry))

    def pop(self) -> Candidate | None:
        """Takes out the likeliest."""
        return heapq.heappop(self._heap)[-1] if self._heap else None
