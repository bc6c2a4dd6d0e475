"""A round's decision: which tokens each row gains. Ends a text at the first token that any stop rule asks for."""

from __future__ import annotations

import torch

from ..drafters import Draft
from ..engine import kernels
from ..engine.runner import Head, raw_logits
from .sequences import GeneratedText
from .stats import SpecDecodingStats
from .stopping import StopRules
from .token_choice import TokenChoice
from .verification import Scores, best_tokens


class Acceptance:
    """How the drafts of one call are accepted: all rows and positions at once if processors and criteria allow it.

    Else token by token in the order of plain `generate`: process, choose, append, ask the criteria, so that they see
    each true prefix once and nothing else. What is known to look at one row alone is asked row by row, as if each row
    were a batch of its own. Anything else might look across the rows or count its calls: then all rows advance
    together, a column at a time, and each call is the one that plain `generate` makes.
    """

    def __init__(self, choice: TokenChoice, stops: StopRules, text: GeneratedText, stats: SpecDecodingStats) -> None:
        self.choice = choice
        self.stops = stops
        self.stats = stats
        self.walks = bool(stops.walked) or not choice.is_rowwise
        # Where nothing but the most likely tokens is asked for, the target's forward returns no more than these.
        is_enough = choice.is_argmax and not self.walks and not text.keeps_vectors
        self.head: Head = best_tokens if is_enough else raw_logits
        # Without an end of sequence plain `generate` pads no row: all go on until each was told to stop.
        is_alone = choice.is_row_independent and stops.is_row_independent and (stops.pads or not stops.walked)
        self.is_joint = text.num_rows > 1 and not is_alone
        self.is_draft_broken = False  # whether the last draft's confidences are not all numbers
        self.is_told = [False] * text.num_rows  # rows that were told to stop

    def accept(self, text: GeneratedText, draft: Draft, verified: torch.Tensor) -> tuple[list[int], list[int]]:
        """How many draft tokens each running row keeps, and how many it grows by; the text has grown afterwards.

        verified: what `head` made of the target's logits behind the prefixes and behind each draft token.
        """
        accept = self._walk_all if self.walks else self._accept_at_once
        return accept(text, draft, verified)

    def _accept_at_once(
        self, text: GeneratedText, draft: Draft, verified: torch.Tensor
    ) -> tuple[list[int], list[int]]:
        rows = text.running
        if self.head is best_tokens:
            token_ids, scores, logits = verified.to(text.device), None, None
        else:
            logits = _as_scored(verified, text)
            processed = self.choice.scores(draft.token_ids[:, :0], logits)  # row-wise processors look at no prefix
            token_ids, scores = self.choice.choose(processed, draft.token_ids, draft.probs), processed.values
        outcome = kernels.accept(  # host sync: round
            draft.token_ids,
            draft.confidence,
            token_ids,
            draft.lengths,
            [text.lengths[row] for row in rows],
            [text.finished[row] for row in rows],
            self.stops.max_length,
            self.stops.eos_token_ids,
        )
        self.stats.host_reads += 1
        self.is_draft_broken = any(row.is_broken for row in outcome)
        for row, gained in zip(rows, outcome, strict=True):
            text.finished[row] = gained.is_finished
        counts = [gained.num_emitted for gained in outcome]
        text.append(rows, token_ids, counts, scores, logits)
        return [gained.num_accepted for gained in outcome], counts

    def _walk_all(self, text: GeneratedText, draft: Draft, verified: torch.Tensor) -> tuple[list[int], list[int]]:
        logits = _as_scored(verified, text)
        is_broken = draft.confidence.isnan().any(dim=1, keepdim=True).to(draft.token_ids)
        rows = torch.cat([is_broken, draft.token_ids], dim=1).tolist()  # host sync: the draft
        self.stats.host_reads += 1
        self.is_draft_broken = any(broken for broken, *_ in rows)
        draft_ids = [ids[:length] for (_, *ids), length in zip(rows, draft.lengths, strict=True)]
        before = [text.lengths[row] for row in text.running]
        accepted = [0] * len(before)
        walkers = [index for index, row in enumerate(text.running) if not text.finished[row]]
        for group in [walkers] if self.is_joint else [[index] for index in walkers]:
            self._walk(group, text, draft, draft_ids, logits, accepted)
        return accepted, [text.lengths[row] - old for row, old in zip(text.running, before, strict=True)]

    def _walk(
        self,
        group: list[int],
        text: GeneratedText,
        draft: Draft,
        draft_ids: list[list[int]],
        logits: torch.Tensor,
        accepted: list[int],
    ) -> None:
        """Advances rows of one length, given by their places in the round's tensors, until one of them has no
        verified token to go on from, or none is left."""
        seen = list(range(text.num_rows)) if self.is_joint else [text.running[index] for index in group]
        for position in range(logits.shape[1]):
            rows = [text.running[index] for index in group]
            here = (group, slice(position, position + 1))
            raw = logits[here]
            scores = self._scores(text, seen, rows, raw)
            chosen = self.choice.choose(
                scores, draft.token_ids[here], None if draft.probs is None else draft.probs[here]
            )
            text.append(rows, chosen, [1] * len(rows), scores.values, raw)
            token_ids = chosen[:, 0].tolist()  # host sync: the next prefix depends on it
            self.stats.host_reads += 1
            self._stop(text, seen, rows, token_ids)
            confirmed = [draft_ids[i][position : position + 1] == [t] for i, t in zip(group, token_ids, strict=True)]
            for index, is_confirmed in zip(group, confirmed, strict=True):
                accepted[index] += is_confirmed
            ended = [text.finished[row] for row in rows]
            if all(ended) or not all(map(max, ended, confirmed)):
                return
            group = [index for index, is_over in zip(group, ended, strict=True) if not is_over]

    def _scores(self, text: GeneratedText, seen: list[int], rows: list[int], raw: torch.Tensor) -> Scores:
        """Processed scores of the rows' one position, behind the prefixes of all rows that processors see; what they
        see of a finished row are zeros."""
        if seen == rows:
            return self.choice.scores(text.ids(seen), raw)
        every = raw.new_zeros(len(seen), *raw.shape[1:])
        every[rows] = raw
        values, token_ids = self.choice.scores(text.ids(seen), every)
        return Scores(values[rows], token_ids[rows])

    def _stop(self, text: GeneratedText, seen: list[int], rows: list[int], token_ids: list[int]) -> None:
        """Marks the rows that the newest tokens complete."""
        told = {row for row, token in zip(rows, token_ids, strict=True) if self.stops.ends(token, text.lengths[row])}
        if self.stops.walked:
            answers = self.stops.walked(text.ids(seen), text.scores(seen)).tolist()  # host sync: the caller's criteria
            self.stats.host_reads += 1
            told.update(row for row, answer in zip(seen, answers, strict=True) if answer)
        for row in told:
            self.is_told[row] = True
        waits = self.is_joint and not self.stops.pads and not all(self.is_told)
        for row in rows:
            text.finished[row] = self.is_told[row] and not waits


def _as_scored(logits: torch.Tensor, text: GeneratedText) -> torch.Tensor:
    """A copy in float32, as plain `generate` makes it."""
    return logits.to(device=text.device, dtype=torch.float32, copy=True)
