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
        if self.head is best_tokens:
            token_ids, scores, logits = verified.to(sequences.device), None, None
        else:
            logits = _as_scored(verified, sequences)
            processed = self.choice.scores(draft.token_ids[:, :0], logits)  # row-wise processors look at no prefix
            token_ids, scores = self.choice.choose(processed, draft.token_ids, draft.probs), processed.values
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
        return outcome

    def _walk_all(self, sequences: Sequences, draft: Draft, verified: torch.Tensor) -> list[RowOutcome]:
        logits = _as_scored(verified, sequences)
        is_broken = draft.confidence.isnan().any(dim=1, keepdim=True).to(draft.token_ids)
        on_host = torch.cat([is_broken, draft.token_ids], dim=1).tolist()  # host sync: the draft
        self.stats.host_reads += 1
        draft_ids = [ids[:length] for (_, *ids), length in zip(on_host, draft.lengths, strict=True)]
        running = sequences.running
        before = [sequences.lengths[row] for row in running]
        accepted = [0] * len(running)
        unfinished = [place for place, row in enumerate(running) if not sequences.finished[row]]
        for places in [unfinished] if self.stops.is_joint and unfinished else [[place] for place in unfinished]:
            self._walk(places, sequences, draft, draft_ids, logits, accepted)
        return [
            RowOutcome(count, sequences.lengths[row] - length, sequences.finished[row], bool(broken))
            for count, row, length, (broken, *_) in zip(accepted, running, before, on_host, strict=True)
        ]

    def _walk(
        self,
        places: list[int],
        sequences: Sequences,
        draft: Draft,
        draft_ids: list[list[int]],  # by place
        logits: torch.Tensor,  # by place
        accepted: list[int],  # by place; counted here
    ) -> None:
        """Advances sequences of one length until one of them has no verified token to continue from, or all are
        finished."""
        rows = [sequences.running[place] for place in places]
        seen = list(range(sequences.num_rows)) if self.stops.is_joint else rows
        for position in range(logits.shape[1]):
            here = (places, slice(position, position + 1))
            raw = logits[here]
            scores = self._scores(sequences, seen, rows, raw)
            drafted_from = None if draft.probs is None else draft.probs[here]
            chosen = self.choice.choose(scores, draft.token_ids[here], drafted_from)
            sequences.append(rows, chosen, [1] * len(rows), scores.values, raw)
            token_ids = chosen[:, 0].tolist()  # host sync: the next prefix depends on it
            self.stats.host_reads += 1 + bool(self.stops.walked)
            finished = self.stops.after(token_ids, rows, sequences, seen)
            is_matched = [draft_ids[p][position : position + 1] == [t] for p, t in zip(places, token_ids, strict=True)]
            for place, row, is_over, matched in zip(places, rows, finished, is_matched, strict=True):
                sequences.finished[row] = is_over
                accepted[place] += matched
            if all(finished) or not all(map(max, finished, is_matched)):
                return
            places = [place for place, is_over in zip(places, finished, strict=True) if not is_over]
            rows = [sequences.running[place] for place in places]

    def _scores(self, sequences: Sequences, seen: Sequence[int], rows: Sequence[int], raw: torch.Tensor) -> Scores:
        """Processed scores of one position of the rows. Processors see the prefixes of the rows `seen`, and zeros as
        the scores of a finished one."""
        if seen == rows:
            return self.choice.scores(sequences.ids(seen), raw)
        every = raw.new_zeros(len(seen), *raw.shape[1:])
        every[rows] = raw
        values, token_ids = self.choice.scores(sequences.ids(seen), every)
        return Scores(values[rows], token_ids[rows])


def _as_scored(logits: torch.Tensor, sequences: Sequences) -> torch.Tensor:
    """A copy in float32, as plain `generate` makes it."""
    return logits.to(device=sequences.device, dtype=torch.float32, copy=True)
