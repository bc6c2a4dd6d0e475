"""A drafter that drafts a given script."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from conftest import VOCAB_SIZE, plain
from transformers import PreTrainedModel

import hf_failfast
from hf_failfast.drafters import DiffusionDrafter, DraftRequest, DraftSession, PerRow
from hf_failfast.drafters.chunks import Chunk, ChunkedSession
from hf_failfast.drafters.denoising import Alternatives
from hf_failfast.engine.ragged import RaggedIds


@dataclass(eq=False)
class ScriptedDrafter(DiffusionDrafter):
    """Drafts the known continuation with one wrong token at a chosen place, and with chosen confidences.

    accept_lengths: in round r the first `accept_lengths[r % len]` tokens are right and the next is wrong; None: all
        are right.
    confidence: of a token, given its index in the draft.
    rank: if a request asks for alternatives, which of them the right token is where the draft is wrong.
    """

    reference: torch.Tensor  # (1, n), the target's own text, prompt included
    accept_lengths: Sequence[int] | None = None
    confidence: Callable[[int], float] = lambda index: 1.0
    sees_eos: bool = True  # whether drafts end at an end of sequence
    rank: int | None = None  # None: it has no alternatives
    config: hf_failfast.FailFastConfig = field(default_factory=hf_failfast.FailFastConfig)
    sessions: list["ScriptedSession"] = field(default_factory=list)

    @property
    def has_alternatives(self) -> bool:  # type: ignore[override]
        return self.rank is not None

    def start(self, request: DraftRequest) -> DraftSession:
        return PerRow.of(request, self.start_one)

    def start_one(self, request: DraftRequest) -> "ScriptedSession":
        eos_token_ids = request.eos_token_ids if self.sees_eos else None
        self.sessions.append(ScriptedSession(self, request.capacity, eos_token_ids, request.num_alternatives))
        return self.sessions[-1]


class ScriptedSession(ChunkedSession):
    """Drafts the script, and checks that its owner keeps the contract of a session."""

    def __init__(
        self, drafter: ScriptedDrafter, capacity: int, eos_token_ids: torch.Tensor | None, num_alternatives: int = 0
    ) -> None:
        super().__init__(eos_token_ids)
        self.num_alternatives = num_alternatives
        self.drafter = drafter
        self.capacity = capacity
        self.accepted: list[int] = []
        self.drafted = 0  # tokens of this round's draft so far, as proposed
        self.expected: int | None = None  # tokens at the time of the next draft

    def draft_chunk(self, known: RaggedIds, length: int) -> Chunk:
        (start,), (num_tokens,) = known.lengths, self.lengths
        token_ids, num_drafted = known.ids[:, :num_tokens], start - num_tokens
        assert torch.equal(token_ids, self.drafter.reference[:, :num_tokens]), "asked to draft after a false prefix"
        assert self.expected in (None, num_tokens), "the sequence did not grow by what was accepted"
        assert start + length <= self.capacity, "asked to draft more than the sequence can hold"
        ids = self.drafter.reference[:, start : start + length].clone()
        ids = torch.cat([ids, ids.new_zeros(1, length - ids.shape[1])], dim=1)
        lengths = self.drafter.accept_lengths
        wrong = -1 if lengths is None else lengths[len(self.accepted) % len(lengths)] - num_drafted
        if 0 <= wrong < length:
            ids[:, wrong] = (ids[:, wrong] + 1) % VOCAB_SIZE
        confidence = [self.drafter.confidence(num_drafted + index) for index in range(length)]
        self.drafted = num_drafted + length
        return Chunk(ids, torch.tensor([confidence]), 1, alternatives=self._alternatives(ids, wrong))

    def _alternatives(self, ids: torch.Tensor, wrong: int) -> Alternatives | None:
        """Other tokens, each half as likely as the one before."""
        if not self.num_alternatives or self.drafter.rank is None:
            return None
        others = (ids[..., None] + 2 + torch.arange(self.num_alternatives)) % VOCAB_SIZE
        if 0 <= wrong < ids.shape[1]:
            others[:, wrong, self.drafter.rank] = (ids[:, wrong] - 1) % VOCAB_SIZE
        return Alternatives(others, 0.5 ** torch.arange(2, self.num_alternatives + 2).expand(others.shape))

    def overtaken(self, counts: Sequence[int]) -> None:
        assert self.expected is not None and counts[0] >= 0
        self.expected += counts[0]

    def accept(self, counts: Sequence[int]) -> None:
        (num_accepted,) = counts
        assert 0 <= num_accepted <= self.drafted, f"{num_accepted} of {self.drafted} draft tokens accepted"
        self.accepted.append(num_accepted)
        self.drafted = 0
        self.expected = self.lengths[0] + num_accepted + 1

    def max_draft_length(self, num_tokens: int) -> int:
        return 10**9


def scripted(model: PreTrainedModel, input_ids: torch.Tensor, **options: Any) -> ScriptedDrafter:
    """A drafter that knows 60 tokens of the target's continuation."""
    return ScriptedDrafter(plain(model, input_ids, max_new_tokens=60), **options)
