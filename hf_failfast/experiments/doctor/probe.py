"""A drafter without a model: the target's own answers with mistakes, to check a target that has no drafter yet."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...config import FailFastConfig
from ...drafters import DiffusionDrafter, DraftRequest, DraftSession, PerRow, RaggedIds
from ...drafters.chunks import Chunk, ChunkedSession

LENGTH = 8  # tokens of a draft


class ProbeDrafter(DiffusionDrafter):
    """Drafts the known answers; the r-th draft of an answer has a mistake at place r modulo LENGTH + 1, so that every
    number of tokens, from none to all, is accepted in turn.

    answers: texts (1, n), prompt included; other texts get drafts of zeros.
    """

    def __init__(self, answers: Sequence[torch.Tensor]) -> None:
        self.answers = answers
        self.config = FailFastConfig(0.0, LENGTH, LENGTH)

    def start(self, request: DraftRequest) -> DraftSession:
        vocab_size = request.target.config.get_text_config(decoder=True).vocab_size
        return PerRow.of(request, lambda one: ProbeSession(self.answers, vocab_size, one))


class ProbeSession(ChunkedSession):
    """See `ProbeDrafter`."""

    def __init__(self, answers: Sequence[torch.Tensor], vocab_size: int, request: DraftRequest) -> None:
        super().__init__(request.eos_token_ids)
        self.answers = answers
        self.vocab_size = vocab_size
        self.num_drafts = 0

    def draft_chunk(self, known: RaggedIds, length: int) -> Chunk:
        (start,) = known.lengths
        ids = known.ids.new_zeros(1, length)
        drafted = self._answer(known.ids[:, :start])[:, start : start + length]
        ids[:, : drafted.shape[1]] = drafted
        mistake = self.num_drafts % (LENGTH + 1)
        if mistake < length:
            ids[:, mistake] = (ids[:, mistake] + 1) % self.vocab_size
        return Chunk(ids, torch.ones(1, length, device=ids.device), 1)

    def accept(self, counts: Sequence[int]) -> None:
        self.num_drafts += 1

    def max_draft_length(self, num_tokens: int) -> int:
        return LENGTH

    def _answer(self, text: torch.Tensor) -> torch.Tensor:
        """The answer that begins with the text; none of it where the text is another."""
        begun = (answer for answer in self.answers if torch.equal(answer[:, : text.shape[1]].to(text.device), text))
        return next(begun, text)
