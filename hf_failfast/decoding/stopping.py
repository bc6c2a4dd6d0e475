"""Stop conditions, checked on every accepted prefix and never on unverified tokens; and how far a draft may go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation import MaxTimeCriteria, StopStringCriteria

from ..engine.positions import position_table, rope_change
from .sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Criteria that judge each sequence by itself and remember nothing.
ROW_INDEPENDENT_CRITERIA = (MaxTimeCriteria, StopStringCriteria)


class StopRules:
    """The stopping criteria of one call, split by cost.

    Length and end-of-sequence are decided with the acceptance of a whole draft. Everything else (stop strings,
    `max_time`, the caller's own criteria, stateful or not) is in `walked` and must be asked after every single token.

    is_joint: the sequences of a batch advance together, a column at a time, since criteria or scores might look across
        them or count their calls.
    """

    def __init__(
        self,
        criteria: StoppingCriteriaList,
        max_length: int,
        num_rows: int = 1,
        has_independent_scores: bool = True,  # those of a sequence depend on no other one
    ) -> None:
        self.max_length = max_length
        eos = [c.eos_token_id.flatten() for c in criteria if type(c) is EosTokenCriteria]
        self.eos_token_ids = torch.cat(eos).unique() if eos else None
        self._eos = set() if self.eos_token_ids is None else set(self.eos_token_ids.tolist())
        for criterion in criteria:
            if type(criterion) is MaxLengthCriteria:
                self.max_length = min(self.max_length, criterion.max_length)
        self.walked = StoppingCriteriaList(
            criterion for criterion in criteria if type(criterion) not in (EosTokenCriteria, MaxLengthCriteria)
        )
        are_independent = all(type(criterion) in ROW_INDEPENDENT_CRITERIA for criterion in self.walked)
        # Without an end of sequence plain `generate` pads nothing: all go on until each was told to stop.
        is_alone = has_independent_scores and are_independent and (self.pads or not self.walked)
        self.is_joint = num_rows > 1 and not is_alone
        self._was_told = [False] * num_rows  # to stop

    @property
    def pads(self) -> bool:
        """Whether a finished sequence is filled up with the padding token while others go on."""
        return self.eos_token_ids is not None

    def ends(self, token_id: int, length: int) -> bool:
        """Whether a sequence that has `length` tokens, `token_id` last, is complete by length or end of sequence."""
        return token_id in self._eos or length >= self.max_length

    def after(
        self, token_ids: Sequence[int], rows: Sequence[int], sequences: Sequences, seen: Sequence[int]
    ) -> list[bool]:
        """Which of the sequences `rows` are complete, now that each has got its newest token.

        seen: the sequences that the criteria are asked about.
        """
        for row, token_id in zip(rows, token_ids, strict=True):
            self._was_told[row] |= self.ends(token_id, sequences.lengths[row])
        if self.walked:
            answers = self.walked(sequences.ids(seen), sequences.scores(seen)).tolist()  # host sync: own criteria
            for row, answer in zip(seen, answers, strict=True):
                self._was_told[row] |= answer
        waits = self.is_joint and not self.pads and not all(self._was_told)
        return [self._was_told[row] and not waits for row in rows]


class DraftRoom(NamedTuple):
    """How far a draft may go after a text; lengths include leading padding.

    longest: how long the text may get by drafting: the target adds a token to every round, so a draft leaves room for
        it, and it stays within a table of positions.
    change: no forward reads tokens on both sides of this length; None: any may.
    is_open: whether there are drafts beyond the change.
    """

    longest: int
    change: int | None = None
    is_open: bool = True

    @classmethod
    def of(cls, model: PreTrainedModel, max_length: int, padding: int = 0) -> DraftRoom:
        """The room of a text of at most `max_length` tokens, `padding` hidden ones included."""
        config = model.config.get_text_config(decoder=True)
        table, change = position_table(config), rope_change(config)
        longest = max_length - 1 if table is None else min(max_length - 1, padding + table)
        if change is None:
            return cls(longest)
        return cls(longest, padding + change.length, change.kind == "longrope")

    def after(self, length: int) -> int:
        """How many tokens may be drafted after a text of `length` tokens; less than 1: none."""
        if self.change is None or (length > self.change and self.is_open):
            return self.longest - length
        return min(self.longest, self.change) - length
