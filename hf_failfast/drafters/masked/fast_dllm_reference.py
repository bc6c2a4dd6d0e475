"""Fast-dLLM v2's own way to draft, pass by pass, to compare ours with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch

from ...engine.causal_lm import CausalLM
from ...engine.kernels import most_likely
from ...engine.ragged import RaggedIds
from ...engine.runner import EagerRunner
from ...engine.window import Sight, Window
from ...policies.base import LengthPolicy
from ..base import Draft, DraftRequest, DraftSession
from ..denoising import Denoising
from ..spec import DrafterSpec
from .attention_patterns import BlockCausal


class Pass(NamedTuple):
    """One forward of the drafter."""

    cached: int  # tokens in the slots before it
    fed: int
    committed: bool  # whether its K/V stay


class ReferenceSession(DraftSession):
    """FailFast (arXiv 2512.20573) as its authors implemented it on Fast-dLLM v2, for a block-causal body with shift.

    A draft is written in sub-blocks: a pass over the whole block of 32 fills the positions of one sub-block of 8 whose
    confidence exceeds 0.05, and always the best one; a complete block costs a pass of its own for its K/V. The draft
    grows while every recorded confidence is high. Recorded are all masked positions of each pass, even after the
    draft's end, but not the tokens of a committing pass. The cap counts the record, so that drafts may become longer
    than `max_draft_length`.

    Departures: the mask token is never drafted. A prefix of exactly one block is read (the original ignores it). The
    prefix' K/V are reused only if they are those of the accepted tokens (the original's test lets stale ones pass),
    and, as in the original, only if the last draft committed no block.
    """

    def __init__(
        self,
        model: CausalLM,
        spec: DrafterSpec,
        vocab_size: int,
        request: DraftRequest,
        small_block_size: int = 8,
        threshold: float = 0.05,
        max_blocks: int = 3,
    ) -> None:
        self.device = model.device
        self.eos_token_ids = request.eos_on(self.device)
        assert spec.block_size is not None
        self.block_size = spec.block_size
        self.mask_token_id = cast(int, spec.mask_token_id)
        self.vocab_size = vocab_size
        self.last_id = model.config.vocab_size - 1  # stands for the target's ids that the drafter does not know
        self.small_block_size = small_block_size
        self.denoising = Denoising(threshold=threshold)
        self.max_blocks = max_blocks
        self.pattern = BlockCausal(spec)
        self.runner = EagerRunner(model)
        self.cache = self.runner.new_cache((request.capacity // self.block_size + max_blocks + 2) * self.block_size)
        self.last_position = getattr(model.config, "max_position_embeddings", None) or request.capacity
        self.num_prefix = 0  # accepted tokens in the slots that the next draft may build on
        self.recorded: list[float] = []  # the confidences that the length rule of the last draft saw
        self.passes: list[Pass] = []  # of the last draft

    def draft(self, text: RaggedIds, policy: LengthPolicy, room: Sequence[int]) -> Draft:
        """For one sequence. As the interface says, except for the authors' chunk rule (see the class)."""
        token_ids, start = text.ids, text.lengths[0]
        self.recorded, self.passes = [], []
        cap = min(room[0], self._positions_left(start))
        written = _Text(
            token_ids.to(self.device).clamp(max=self.last_id), torch.ones(token_ids.shape, device=self.device)
        )
        end = start + policy.chunk_length
        if cap > 0:
            self._read_prefix(written)
            for _ in range(self.max_blocks):
                end, done = self._write_block(written, start, end, policy)
                if done:
                    break
        kept = slice(start, start + self._length(written.ids[0, start:], min(end - start, max(cap, 0))))
        return Draft(
            written.ids[:, kept].to(token_ids.device),
            written.confidence[:, kept].to(token_ids.device),
            len(self.passes),
            host_reads=4 * len(self.passes),
        )

    def accept(self, counts: Sequence[int]) -> None:
        """Nothing to do: only the accepted prefix is kept, see `_read_prefix`."""

    def _positions_left(self, num_tokens: int) -> int:
        return self.last_position // self.block_size * self.block_size - num_tokens

    def _read_prefix(self, text: "_Text") -> None:
        """Commits all complete blocks of the accepted tokens, unless the slots hold them already."""
        length = text.length // self.block_size * self.block_size
        if length == self.num_prefix:
            self.cache.rollback(length)
            return
        self.cache.rollback(0)
        ids, confidence = self._run(text.ids[:, :length], torch.tensor([length - 1], device=self.device), commit=True)
        self.num_prefix = length
        if length == text.length:
            text.append(ids, confidence)

    def _write_block(self, text: "_Text", start: int, end: int, policy: LengthPolicy) -> tuple[int, bool]:
        """Fills the text's last block. Returns (end of the draft so far, whether drafting is over)."""
        first = text.length // self.block_size * self.block_size
        missing = first + self.block_size - text.length
        text.append(
            torch.full((1, missing), self.mask_token_id, device=self.device),
            torch.zeros(1, missing, device=self.device),
        )
        for offset in range(first, first + self.block_size, self.small_block_size):
            small = torch.arange(offset, min(offset + self.small_block_size, text.length), device=self.device)
            while bool((masked := text.ids[:, small] == self.mask_token_id).any()):  # host sync: another pass or not
                # The block's own first position is never masked here: its token came with the commit before.
                rows = (small - first - 1).clamp(min=0)
                ids, confidence = self._run(text.ids[:, first:], rows, commit=False)
                self.recorded += confidence[masked].tolist()  # host sync: the authors' record
                chosen = self.denoising.choose(confidence, masked, 0, in_order=False)
                text.ids[:, small] = torch.where(chosen, ids, text.ids[:, small])
                text.confidence[:, small] = torch.where(chosen, confidence, text.confidence[:, small])
                if self._is_ended(text.ids[0, start:]):
                    return end, True
                if end <= text.length and not bool((text.ids[:, start:end] == self.mask_token_id).any()):  # host sync
                    confident = bool(policy.should_extend(torch.tensor([self.recorded])))
                    if not confident or len(self.recorded) >= policy.max_draft_length:
                        return end, True
                    end += policy.chunk_length
        text.append(
            *self._run(text.ids[:, first:], torch.tensor([self.block_size - 1], device=self.device), commit=True)
        )
        self.num_prefix = 0
        return end, False

    def _run(self, window: torch.Tensor, rows: torch.Tensor, commit: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass over tokens (1, q) after the slots: ids and confidences (1, r) chosen at the positions `rows`."""
        start = self.cache.get_seq_length()
        end = start + window.shape[1]
        self.passes.append(Pass(start, window.shape[1], commit))
        limit = self.pattern.limit(torch.arange(start, end, device=self.device), start, end)
        (logits,) = self.runner.run(Window(window, [start], rows, Sight(limit)), self.cache).outputs
        if not commit:
            self.cache.rollback(start)
        return most_likely(logits, self.vocab_size, self.mask_token_id)

    def _is_ended(self, drafted: torch.Tensor) -> bool:
        """Whether the drafted tokens (k,) hold an end of sequence with no mask before it."""
        if self.eos_token_ids is None:
            return False
        ends = torch.isin(drafted, self.eos_token_ids).nonzero()
        return len(ends) > 0 and not bool((drafted[: int(ends[0])] == self.mask_token_id).any())  # host sync: end

    def _length(self, drafted: torch.Tensor, longest: int) -> int:
        """How many of the drafted tokens (k,) count: up to the first end of sequence, and to the first mask."""
        drafted = drafted[:longest]
        masks = (drafted == self.mask_token_id).nonzero()
        length = int(masks[0]) if len(masks) else len(drafted)  # host sync: draft length
        if self.eos_token_ids is not None:
            ends = torch.isin(drafted[:length], self.eos_token_ids).nonzero()
            length = int(ends[0]) + 1 if len(ends) else length  # host sync: draft length
        return length


@dataclass
class _Text:
    """Tokens (1, n) and the confidence of each (1, n): accepted ones, drafted ones, masks."""

    ids: torch.Tensor
    confidence: torch.Tensor

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def append(self, ids: torch.Tensor, confidence: torch.Tensor) -> None:
        self.ids = torch.cat([self.ids, ids], dim=1)
        self.confidence = torch.cat([self.confidence, confidence], dim=1)
