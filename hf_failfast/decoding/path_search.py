"""The most coherent path through a draft's candidates: DiffuSpec's causal-consistency path search.

A diffusion drafter fills its positions at once, so that each token is likely by itself and the whole need not hang
together. The search (arXiv 2510.02358, section on path search) scores whole paths through the likely tokens, by the
drafter's probabilities and by a causal model: here n-grams of the text so far, which need no training set.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections import Counter
from collections.abc import Collection, Sequence

import torch

from ..drafters import Draft
from .lattice import MOST_ALTERNATIVES, Column, columns_of
from .suggestion import Proposal, View

# The authors' numbers: the mass of a position's candidates, the paths kept, the weight of the drafter's score.
MASS, WIDTH, OWN_WEIGHT = 0.8, 3, 0.5
ORDER = 3  # tokens of an n-gram


class NGrams:
    """How a text goes on after its last tokens, by what followed them before."""

    def __init__(self) -> None:
        self.num_read = 0
        self._following: dict[tuple[int, ...], Counter[int]] = {}

    def extend(self, text: Sequence[int]) -> None:
        """Reads what is new of the text."""
        for place in range(self.num_read, len(text)):
            for length in range(1, min(ORDER, place + 1)):
                self._following.setdefault(tuple(text[place - length : place]), Counter())[text[place]] += 1
        self.num_read = len(text)

    def probability(self, before: Sequence[int], token_id: int, prior: float) -> float:
        """Of the token after others, where the prior is what to expect of a text that says nothing: after each longer
        context the counts have the weight that Witten and Bell (1991) give them, the shorter one has the rest."""
        chance = prior
        for length in range(1, min(ORDER, len(before) + 1)):
            following = self._following.get(tuple(before[len(before) - length :]))
            if following is not None:
                kinds = len(following)
                chance = (following[token_id] + kinds * chance) / (following.total() + kinds)
        return chance


class PathSearch:
    """Puts the best path in the place of each draft of one generation.

    The tokens of a path are the search's choice and samples of no distribution: they are verified as certain.
    """

    num_alternatives = MOST_ALTERNATIVES

    def __init__(self, eos_token_ids: torch.Tensor | None) -> None:
        self._ends = set() if eos_token_ids is None else set(eos_token_ids.tolist())
        self._grams: dict[int, NGrams] = {}  # by row of the batch

    def takes(self, draft: Draft) -> bool:
        """Whether there is a draft with candidates to choose from."""
        return draft.alternatives is not None and len(draft) > 0 and draft.probs is None

    def search(self, draft: Draft, views: Sequence[View]) -> Proposal:
        """The best paths. views: of the draft's sequences."""
        paths = []
        for view, column, length in zip(views, columns_of(draft), draft.lengths, strict=True):
            grams = self._grams.setdefault(view.row, NGrams())
            grams.extend(view.text)
            paths.append(self._path(column, length, view.text[1 - ORDER :], grams))
        token_ids, confidence = draft.token_ids.clone(), draft.confidence.clone()
        for row, path in enumerate(paths):
            places = slice(0, len(path))
            token_ids[row, places] = torch.tensor([token for token, _ in path], device=token_ids.device)
            confidence[row, places] = torch.tensor([value for _, value in path], device=confidence.device)
        lengths = [len(path) for path in paths]
        own = [
            next((place for place, (token, _) in enumerate(path) if token != drafted[place]), len(path))
            for path, drafted in zip(paths, (view.drafted for view in views), strict=True)
        ]
        longest = max(lengths)
        return Proposal(
            token_ids[:, :longest],
            confidence[:, :longest],
            draft.passes,
            draft.host_reads + 1,
            lengths=lengths,
            own=tuple(own),
            chosen=tuple(lengths),
        )

    def _path(self, column: Column, length: int, before: Sequence[int], grams: NGrams) -> list[tuple[int, float]]:
        """Tokens and the drafter's probabilities of them, up to the first end of sequence."""
        lattice = [_candidates(column, place, self._ends) for place in range(length)]
        if any(value != value for value in column.confidence[:length]):
            return [candidates[0] for candidates in lattice]  # a broken drafter's: the acceptance will say so
        paths: list[tuple[float, list[tuple[int, float]]]] = [(0.0, [])]
        for candidates in lattice:
            grown = []
            for score, path in paths:
                context = [*before, *(token for token, _ in path[1 - ORDER :])]
                for token, prob in candidates:
                    causal = grams.probability(context, token, prob)
                    gain = OWN_WEIGHT * _log(prob) + (1 - OWN_WEIGHT) * _log(causal)
                    grown.append((score + gain, [*path, (token, prob)]))
            paths = heapq.nlargest(WIDTH, grown, key=lambda each: each[0])
        best = paths[0][1]
        end = next((place for place, (token, _) in enumerate(best, start=1) if token in self._ends), length)
        return best[:end]


def _candidates(column: Column, place: int, ends: Collection[int]) -> list[tuple[int, float]]:
    """The fewest likeliest tokens of a position that hold the mass, and an end of sequence wherever it is one."""
    found: list[tuple[int, float]] = []
    mass = 0.0
    probs = (column.confidence[place], *column.probs[place])
    for token, prob in zip(column.token_ids[place], probs, strict=True):
        if not found or (prob > 0 and (mass < MASS or token in ends)):
            found.append((token, prob))
            mass += prob
    return found


def _log(probability: float) -> float:
    return math.log(max(probability, sys.float_info.min))
