"""A drafter of another tokenizer: it reads and writes text, and the target's tokenizer turns its draft into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...engine.ragged import RaggedIds
from ...policies.base import LengthPolicy
from ..base import DiffusionDrafter, Draft, DraftRequest, DraftSession, PerRow
from ..masked.session import MaskedDrafter
from .base import Wrapper

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# How many of the last tokens are encoded again together with the draft's text, tried in this order: see
# `_encode_draft`.
OVERLAPS = (64, 16, 4, 1)

# The drafter's slots have room for this many of its tokens per token of the target.
TOKEN_RATIO = 2


class CrossTokenizerDrafter(Wrapper):
    """A drafter between two tokenizers. Slower than one tokenizer, and as lossless: a badly aligned draft is rejected.

    The inner drafter keeps its own sequence; the part that stays the same between two rounds keeps its K/V.
    """

    def __init__(
        self,
        drafter: DiffusionDrafter,
        target_tokenizer: PreTrainedTokenizerBase,
        drafter_tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        if drafter.own_model is None:
            raise ValueError(
                "The drafter borrows the target's embedding or hidden states, so it needs its tokenizer. Where it "
                "borrows the embedding only, `drafter.borrowing_from(model)` takes that of the model it was made for."
            )
        if isinstance(drafter, MaskedDrafter) and drafter.options.mode == "reference":
            raise ValueError("`mode='reference'` drafts for the drafter's own tokenizer only.")
        super().__init__(drafter)
        self.drafts_by_chunks = False  # the target's tokenizer has the last word on lengths
        self.has_alternatives = False
        self.target_tokenizer = target_tokenizer
        self.drafter_tokenizer = drafter_tokenizer

    def start(self, request: DraftRequest) -> DraftSession:
        return PerRow.of(request, self._start)

    def _start(self, request: DraftRequest) -> CrossTokenizerSession:
        own_eos = self.drafter_tokenizer.eos_token_id
        own = DraftRequest(
            self.drafter.own_model,  # as if it drafted for a target with its own vocabulary
            TOKEN_RATIO * request.capacity + 256,
            eos_token_ids=None if own_eos is None else torch.tensor([own_eos]),
        )
        return CrossTokenizerSession(self, self.drafter.start(own), own.capacity, request.target)


class CrossTokenizerSession(DraftSession):
    """Each round: the text so far as the drafter's tokens, its draft as text, that text as the target's tokens."""

    def __init__(
        self,
        drafter: CrossTokenizerDrafter,
        inner: DraftSession,
        own_capacity: int,
        target: PreTrainedModel,
    ) -> None:
        self.inner = inner
        self.num_read = 0  # tokens of the inner session's sequence at the time of its last draft
        self.own_capacity = own_capacity
        self.target_tokenizer: Any = drafter.target_tokenizer
        self.drafter_tokenizer: Any = drafter.drafter_tokenizer
        self.target_beginning = _beginning(self.target_tokenizer)
        self.beginning = _beginning(self.drafter_tokenizer)
        self.vocab_size = target.config.get_text_config(decoder=True).vocab_size
        self.known: list[int] = []  # the inner session's sequence, its last draft included

    def draft(self, text: RaggedIds, policy: LengthPolicy, room: Sequence[int]) -> Draft:
        """For one sequence. The length rule decides on the drafter's own tokens."""
        token_ids = text.ids
        own = self._own_ids(token_ids[0].tolist())  # host sync: the text
        longest = min(room[0], self.own_capacity - len(own) - policy.max_draft_length - 1)
        if not own or longest < 1:
            return _draft([], token_ids, 1.0, 0, 1)
        self._keep_common(own)
        known = RaggedIds.full(torch.tensor([own], device=token_ids.device))
        drafted = self.inner.draft(known, policy, [policy.max_draft_length])
        self.num_read = len(own)
        self.known = own + drafted.token_ids[0].tolist()  # host sync: the draft
        ids = self._encode_draft(token_ids[0].tolist(), self._new_text(own, self.known))
        ids = ids[: min(longest, policy.max_draft_length)]
        confidence = float(drafted.confidence.min()) if len(drafted) else 1.0  # host sync: the record of confidences
        return _draft(ids, token_ids, confidence, drafted.passes, drafted.host_reads + 3)

    def accept(self, counts: Sequence[int]) -> None:
        """Nothing to do: the next draft compares its own sequence with the text."""

    def _own_ids(self, token_ids: list[int]) -> list[int]:
        """The text as the drafter's tokens: it begins as the drafter's texts do, and not as the target's."""
        start = len(self.target_beginning)
        if token_ids[:start] != self.target_beginning:
            start = 0
        words = self.target_tokenizer.decode(token_ids[start:], **_VERBATIM)
        return self.beginning + list(self.drafter_tokenizer(words, add_special_tokens=False).input_ids)

    def _keep_common(self, own: list[int]) -> None:
        """Tells the inner session how much of its sequence is still valid; at least one token must be new to it."""
        pairs = zip(self.known, own[:-1], strict=False)
        shorter = min(len(self.known), len(own) - 1)
        common = next((index for index, (old, new) in enumerate(pairs) if old != new), shorter)
        if self.known:
            self.inner.accept([common - self.num_read])

    def _new_text(self, own: list[int], known: list[int]) -> str:
        """The text of the drafted tokens, decoded in context; without a last character whose bytes are incomplete."""
        before, after = (self.drafter_tokenizer.decode(ids, **_VERBATIM) for ids in (own, known))
        if not after.startswith(before):
            return ""
        text: str = after[len(before) :]
        return text.rstrip("\N{REPLACEMENT CHARACTER}")

    def _encode_draft(self, token_ids: list[int], text: str) -> list[int]:
        """The target's tokens for a text after `token_ids`.

        The tokens before a text can decide how it is split. So it is encoded together with the longest run of last
        tokens that comes out unchanged; alone if none does (the draft continues a token).
        """
        if not text:
            return []
        for count in OVERLAPS:
            tail = token_ids[-count:]
            joined = self.target_tokenizer.decode(tail, **_VERBATIM) + text
            ids = self.target_tokenizer(joined, add_special_tokens=False).input_ids
            if ids[: len(tail)] == tail:
                break
        else:
            tail, ids = [], self.target_tokenizer(text, add_special_tokens=False).input_ids
        new = ids[len(tail) :]
        unknown = next((index for index, token_id in enumerate(new) if token_id >= self.vocab_size), len(new))
        return list(new[:unknown])


def _beginning(tokenizer: Any) -> list[int]:
    """The token that a tokenizer puts before every text, if it does."""
    added = list(tokenizer("").input_ids)
    return added if added == [tokenizer.bos_token_id] else []


_VERBATIM = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}


def _draft(ids: list[int], like: torch.Tensor, confidence: float, passes: int, host_reads: int) -> Draft:
    """A draft of these ids, all with one confidence: the lowest of the drafter's tokens."""
    token_ids = torch.tensor([ids], dtype=like.dtype, device=like.device).reshape(1, len(ids))
    return Draft(token_ids, torch.full(token_ids.shape, confidence, device=like.device), passes, host_reads)
