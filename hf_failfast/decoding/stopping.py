"""Where a generation ends: exact on every accepted prefix, never asked about unverified tokens."""

import torch
from transformers import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation import MaxTimeCriteria, StopStringCriteria

# Criteria that judge each row by itself and remember nothing.
ROW_INDEPENDENT_CRITERIA = (MaxTimeCriteria, StopStringCriteria)


class StopRules:
    """The stopping criteria of one call, split by cost.

    Length and end-of-sequence are decided with the acceptance of a whole draft. Everything else (stop strings,
    `max_time`, the caller's own criteria, stateful or not) is in `walked` and must be asked after every single token.
    """

    def __init__(self, criteria: StoppingCriteriaList, max_length: int) -> None:
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

    @property
    def pads(self) -> bool:
        """Whether a finished row is filled up with the padding token while others go on."""
        return self.eos_token_ids is not None

    @property
    def is_row_independent(self) -> bool:
        """Whether every criterion may be asked about one row at a time."""
        return all(type(criterion) in ROW_INDEPENDENT_CRITERIA for criterion in self.walked)

    def ends(self, token_id: int, length: int) -> bool:
        """Whether a sequence that has `length` tokens, `token_id` last, is complete by length or end of sequence."""
        return token_id in self._eos or length >= self.max_length
