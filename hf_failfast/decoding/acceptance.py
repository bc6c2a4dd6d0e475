"""Which draft tokens stay: those that the target would have written itself, up to the first stop."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..drafters import Draft
from ..engine import kernels
from ..engine.kernels.reference import RowOutcome
from ..engine.runner import Head, best_tokens, raw_logits
from .sequences import Sequences
from .stats import SpecDecodingStats
from .stopping import StopRules
from .token_choice import TokenChoice
from .trees import TreeDraft
from .verification import Scores


class Acceptance:
    """Accepts drafts in one step where processors and criteria look at nothing but a sequence's own scores.

    Otherwise accepts token by token in the order of plain `generate` (process, choose, append, ask the criteria), so
    that they see each true prefix once and nothing else. Those known to look at one sequence alone are called for one
    sequence at a time, as if each were a batch of its own. Others might look across sequences or count their calls:
    then all sequences advance together, column by column, and each call is one that plain `generate` makes.

    Three index spaces: a *row* is a sequence of the batch; a *place* is an index into the tensors of a round, whose
    rows are `sequences.running`; processors and criteria see the rows `seen`.
    """

    def __init__(self, choice: TokenChoice, stops: StopRules, sequences: Sequences, stats: SpecDecodingStats) -> None:
        self.choice = choice
        self.stops = stops
        self.stats = stats
        self.walks = bool(stops.walked) or not choice.is_rowwise
        # If only the most likely tokens are needed, the target's forward returns nothing else.
        is_enough = choice.is_argmax and not self.walks and not sequences.keeps_vectors
        self.head: Head = best_tokens if is_enough else raw_logits

    def accept(self, sequences: Sequences, draft: Draft, verified: torch.Tensor) -> list[RowOutcome]:
        """What the round adds to each running sequence; appends it to them.

        verified: the result of `head` on the target's logits after the prefixes and after each draft token.
        """
        accept = self._walk_all if self.walks else self._accept_at_once
        return accept(sequences, draft, verified)

    def _accept_at_once(self, sequences: Sequences, draft: Draft, verified: torch.Tensor) -> list[RowOutcome]:
        rows = sequences.running
        paths: list[list[int]] = []
        if self.head is best_tokens:
            token_ids, scores, logits = verified.to(sequences.device), None, None
        else:
            logits = _as_scored(verified, sequences)
            processed = self.choice.scores(draft.token_ids[:, :0], logits)  # row-wise processors look at no prefix
            token_ids, scores = self._choose(processed, draft), processed.values
        branched = draft if isinstance(draft, TreeDraft) else None
        if branched is not None:
            paths = branched.paths(token_ids.tolist())  # host sync: the ways through the trees
            self.stats.host_reads += 1
            draft, index = branched.along(paths)
            token_ids = token_ids.gather(1, index)
            scores, logits = (_taken(values, index) for values in (scores, logits))
        outcome = kernels.accept(  # host sync: round
            draft.token_ids,
            draft.confidence,
            token_ids,
            draft.lengths,
            [sequences.lengths[row] for row in rows],
            [sequences.finished[row] for row in rows],
            self.stops.max_length,
            self.stops.eos_token_ids,
        )
        self.stats.host_reads += 1
        sequences.append(rows, token_ids, [gain.emitted for gain in outcome], scores, logits)
        for row, gain in zip(rows, outcome, strict=True):
            sequences.finished[row] = gain.finished
        return outcome if branched is None else _with_paths(outcome, branched, paths)

    def _choose(self, scores: Scores, draft: Draft) -> torch.Tensor:
        """The target's tokens after the known ones and after each draft token."""
        if not isinstance(draft, TreeDraft):
            return self.choice.choose(scores, draft.token_ids, draft.probs)
        every = [range(len(draft) + 1)] * len(draft.trees)
        return self.choice.choose_in_tree(scores, draft.branches(range(len(every)), every))

    def _walk_all(self, sequences: Sequences, draft: Draft, verified: torch.Tensor) -> list[RowOutcome]:
        logits = _as_scored(verified, sequences)
        branched = draft if isinstance(draft, TreeDraft) else None
        children, broken = _on_host(draft) if branched is None else (branched.children, branched.broken)
        self.stats.host_reads += branched is None
        running = sequences.running
        before = [sequences.lengths[row] for row in running]
        paths: list[list[int]] = [[] for _ in running]
        unfinished = [place for place, row in enumerate(running) if not sequences.finished[row]]
        for places in [unfinished] if self.stops.is_joint and unfinished else [[place] for place in unfinished]:
            self._walk(places, sequences, draft, children, logits, paths)
        outcome = [
            RowOutcome(len(path), sequences.lengths[row] - length, sequences.finished[row], is_broken)
            for path, row, length, is_broken in zip(paths, running, before, broken, strict=True)
        ]
        return outcome if branched is None else _with_paths(outcome, branched, paths)

    def _walk(
        self,
        places: list[int],
        sequences: Sequences,
        draft: Draft,
        children: list[list[dict[int, int]]],  # by place
        logits: torch.Tensor,  # by place
        paths: list[list[int]],  # by place; filled here
    ) -> None:
        """Advances sequences of one length until one of them has no verified token to continue from, or all are
        finished.

        children: what was drafted after the known tokens and after each draft token: its place in the draft, by token.
        """
        rows = [sequences.running[place] for place in places]
        seen = list(range(sequences.num_rows)) if self.stops.is_joint else rows
        at = [0] * len(places)
        while True:
            raw = logits[places, at][:, None]
            scores = self._scores(sequences, seen, rows, raw)
            chosen = self._choose_one(scores, draft, places, at)
            sequences.append(rows, chosen, [1] * len(rows), scores.values, raw)
            token_ids = chosen[:, 0].tolist()  # host sync: the next prefix depends on it
            self.stats.host_reads += 1 + bool(self.stops.walked)
            finished = self.stops.after(token_ids, rows, sequences, seen)
            drafted = [children[place][row].get(t) for place, row, t in zip(places, at, token_ids, strict=True)]
            for place, row, is_over, node in zip(places, rows, finished, drafted, strict=True):
                sequences.finished[row] = is_over
                paths[place] += [] if node is None else [node]
            if all(finished) or any(node is None and not over for node, over in zip(drafted, finished, strict=True)):
                return
            at = [node + 1 for node, over in zip(drafted, finished, strict=True) if node is not None and not over]
            places = [place for place, over in zip(places, finished, strict=True) if not over]
            rows = [sequences.running[place] for place in places]

    def _choose_one(self, scores: Scores, draft: Draft, places: list[int], at: list[int]) -> torch.Tensor:
        """The target's tokens (r, 1) at one position of r sequences."""
        if isinstance(draft, TreeDraft):
            return self.choice.choose_in_tree(scores, draft.branches(places, [[row] for row in at]))
        here = (places, slice(at[0], at[0] + 1))  # chains advance together
        return self.choice.choose(scores, draft.token_ids[here], None if draft.probs is None else draft.probs[here])

    def _scores(self, sequences: Sequences, seen: Sequence[int], rows: Sequence[int], raw: torch.Tensor) -> Scores:
        """Processed scores of one position of the rows. Processors see the prefixes of the rows `seen`, and zeros as
        the scores of a finished one."""
        if seen == rows:
            return self.choice.scores(sequences.ids(seen), raw)
        every = raw.new_zeros(len(seen), *raw.shape[1:])
        every[rows] = raw
        values, token_ids = self.choice.scores(sequences.ids(seen), every)
        return Scores(values[rows], token_ids[rows])


def _on_host(draft: Draft) -> tuple[list[list[dict[int, int]]], Sequence[bool]]:
    """Of each sequence's chain the place of the token drafted after each place, and whether a confidence is NaN."""
    is_broken = draft.confidence.isnan().any(dim=1, keepdim=True).to(draft.token_ids)
    rows = torch.cat([is_broken, draft.token_ids], dim=1).tolist()  # host sync: the draft
    drafted = [row[1 : length + 1] for row, length in zip(rows, draft.lengths, strict=True)]
    children = [[*({token: place} for place, token in enumerate(ids)), {}] for ids in drafted]
    return children, [bool(row[0]) for row in rows]


def _with_paths(outcome: list[RowOutcome], draft: TreeDraft, paths: list[list[int]]) -> list[RowOutcome]:
    rows = zip(outcome, paths, draft.broken, strict=True)
    return [row._replace(path=path[: row.accepted], broken=broken) for row, path, broken in rows]


def _taken(values: torch.Tensor | None, index: torch.Tensor) -> torch.Tensor | None:
    """The rows (B, d) of values (B, m, ...)."""
    if values is None:
        return None
    return values[torch.arange(len(index), device=index.device)[:, None], index]


def _as_scored(logits: torch.Tensor, sequences: Sequences) -> torch.Tensor:
    """A copy in float32, as plain `generate` makes it."""
    return logits.to(device=sequences.device, dtype=torch.float32, copy=True)
