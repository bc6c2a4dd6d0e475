"""Stop strings, exact for every decoding method."""

from collections.abc import Callable, Iterable

import torch
from transformers import StoppingCriteria

# The length of a prompt -> the criterion of stop strings in one answer to it.
NewCriterion = Callable[[int], StoppingCriteria]


class ExactStops(StoppingCriteria):
    """A criterion of stop strings and the end-of-sequence ids, asked about every prefix of every row.

    lm-eval's own criterion decodes the last few tokens only. A method that adds several tokens between two questions
    runs past a stop string that way: the text is cut afterwards, so that its accuracy stays right, but the time and
    the tokens of the overrun are counted. Here each row's first complete prefix is remembered in `ended_at` (tokens,
    prompt included, or None), so that the overrun can be cut off ids and counts.
    """

    def __init__(
        self, new_criterion: NewCriterion | None, eos_token_ids: Iterable[int], prompt_length: int, num_rows: int
    ) -> None:
        self.criteria = [new_criterion(prompt_length) for _ in range(num_rows)] if new_criterion else []
        self.eos_token_ids = frozenset(eos_token_ids)
        self.ended_at: list[int | None] = [None] * num_rows
        self.prompt_length = self.seen = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: object = None, **kwargs: object) -> torch.Tensor:
        """Which rows of (batch, n) are complete, as (batch,) bool. Tokens once shown are not asked about again."""
        for length in range(self.seen + 1, input_ids.shape[1] + 1):
            for row, ended in enumerate(self.ended_at):
                if ended is None and self._ends(row, input_ids[row : row + 1, :length]):
                    self.ended_at[row] = length
        self.seen = input_ids.shape[1]
        return torch.tensor([ended is not None for ended in self.ended_at], device=input_ids.device)

    def _ends(self, row: int, prefix: torch.Tensor) -> bool:
        if int(prefix[0, -1]) in self.eos_token_ids:
            return True
        return bool(self.criteria and self.criteria[row](prefix, None).any())

    def cut(self, sequences: torch.Tensor) -> list[list[int]]:
        """The new ids of every row up to and including the token that completed it."""
        self(sequences)
        rows = zip(sequences.tolist(), self.ended_at, strict=True)
        return [ids[self.prompt_length : len(ids) if ended is None else ended] for ids, ended in rows]
