"""Drafters whose body is a causal-LM decoder under another attention mask: nearly every public diffusion LM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch

from ..config import FailFastConfig
from ..runners import CausalLM, EagerRunner
from .attention import attention_pattern
from .base import Chunk, ChunkedSession, DiffusionDrafter, DraftSession, concatenate_probs
from .denoising import Denoising, DraftTokens, choose_tokens
from .dit import DiT
from .reference import ReferenceSession
from .shared import SharedBody
from .spec import DrafterSpec
from .vocabulary import check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DraftingMode = Literal["fused", "reference"]


@dataclass(frozen=True)
class DraftingOptions:
    """How a masked drafter works, apart from what its checkpoint demands.

    mode: `fused` (K/V commit and drafting share a pass) or `reference` (Fast-dLLM v2's published pass sequence).
    prefix_block: block of the approximate prefix cache of a bidirectional model; None recomputes exactly.
    """

    denoising: Denoising = Denoising()
    mode: DraftingMode = "fused"
    prefix_block: int | None = None


class MaskedDrafter(DiffusionDrafter):
    """A native transformers causal LM (or layers that borrow the target's embedding and head) read by a spec."""

    def __init__(
        self,
        model: PreTrainedModel | SharedBody | DiT,
        spec: DrafterSpec,
        config: FailFastConfig,
        options: DraftingOptions = DraftingOptions(),
    ) -> None:
        self.model = model
        self.spec = spec
        self.config = config
        self.options = options
        self.drafts_by_chunks = options.mode == "fused"
        attention_pattern(spec, options.prefix_block)  # raises now, not at the first draft
        if options.mode not in get_args(DraftingMode):
            raise ValueError(f"`mode` must be one of {list(get_args(DraftingMode))}, but is {options.mode!r}.")
        if options.mode == "reference" and (spec.attention != "block_causal" or spec.shift != 1):
            raise ValueError("`mode='reference'` is Fast-dLLM v2's: block_causal attention with shift 1.")

    def start(self, target: PreTrainedModel, capacity: int, eos_token_ids: torch.Tensor | None) -> DraftSession:
        vocab_size = target.config.get_text_config(decoder=True).vocab_size
        check_vocabulary(self.model.config.get_text_config(decoder=True).vocab_size, vocab_size)
        model = self.model.attach(target) if isinstance(self.model, SharedBody) else cast(CausalLM, self.model)
        if self.options.mode == "reference":
            return ReferenceSession(model, self.spec, capacity, vocab_size, eos_token_ids)
        return MaskedSession(model, self.spec, capacity, vocab_size, eos_token_ids, self.options)


class MaskedSession(ChunkedSession):
    """Drafts by filling masked positions. Final K/V stay in slots, so that no pass re-reads the prefix: the pass that
    drafts also commits the newly accepted tokens."""

    def __init__(
        self,
        model: CausalLM,
        spec: DrafterSpec,
        capacity: int,  # tokens of the whole sequence
        vocab_size: int,  # ids from here on are unknown to the target
        eos_token_ids: torch.Tensor | None,
        options: DraftingOptions = DraftingOptions(),
    ) -> None:
        self.device = model.device
        super().__init__(None if eos_token_ids is None else eos_token_ids.to(self.device))
        block = spec.block_size or 1
        max_positions = getattr(model.config, "max_position_embeddings", None) or capacity + block
        self.spec = spec
        self.vocab_size = vocab_size
        self.last_id = model.config.vocab_size - 1  # stands for the target's ids that the drafter does not know
        self.vocabulary: torch.Tensor | None = getattr(model, "vocabulary", None)
        self.denoising = options.denoising
        self.pattern = attention_pattern(spec, options.prefix_block)
        self.runner = EagerRunner(model)
        self.cache = self.runner.new_cache((capacity // block + 2) * block)
        self.last_position = max_positions // block * block
        self.generator = torch.Generator(self.device).manual_seed(0)

    def max_draft_length(self, num_tokens: int) -> int:
        return self.last_position - num_tokens

    def draft_chunk(self, token_ids: torch.Tensor, drafted: torch.Tensor, length: int) -> Chunk:
        known = torch.cat([token_ids, drafted], dim=1).to(self.device).clamp(max=self.last_id)
        first = known.shape[1]
        chunks: list[Chunk] = []
        while known.shape[1] < first + length:
            chunks.append(self._fill(known, first + length - known.shape[1]))
            known = torch.cat([known, chunks[-1].token_ids], dim=1)
        return Chunk(
            known[:, first:],
            torch.cat([chunk.confidence for chunk in chunks], dim=1),
            sum(chunk.passes for chunk in chunks),
            concatenate_probs(chunks),
        )

    def accept(self, num_accepted: int) -> None:
        final = self.pattern.final_length(self.num_tokens + num_accepted)
        self.cache.rollback(min(self.cache.get_seq_length(), final))

    def _fill(self, known: torch.Tensor, wanted: int) -> Chunk:
        """The next tokens behind the known ones (1, n), as many of the wanted ones as the attention pattern allows."""
        clean_end = known.shape[1]
        num_noise, num_read = self.pattern.plan(clean_end, wanted)
        canvas = self._noise(num_noise)
        tokens = self.denoise(known, canvas, num_read)
        if self.denoising.is_single_pass:
            return Chunk(tokens.token_ids, tokens.confidence, 1, tokens.probs)
        masked = torch.ones_like(tokens.token_ids, dtype=torch.bool)
        passes = 1
        while True:
            masked &= ~self.denoising.choose(tokens.confidence, masked, passes - 1, in_order=self.temperature > 0)
            if not bool(masked.any()):  # host sync: another pass or not
                return Chunk(tokens.token_ids, tokens.confidence, passes, tokens.probs)
            fed = min(num_noise, num_read)
            filled = torch.where(masked[:, :fed], canvas[:, :fed], tokens.token_ids[:, :fed])
            canvas = torch.cat([filled, canvas[:, fed:]], dim=1)
            # With a shift, the first position is predicted by the last known token, which must be in the window again.
            kept = self.pattern.final_length(clean_end - self.spec.shift)
            self.cache.rollback(min(self.cache.get_seq_length(), kept))
            tokens = self.denoise(known, canvas, num_read).where(masked, tokens)
            passes += 1

    def denoise(self, known: torch.Tensor, canvas: torch.Tensor, num_read: int) -> DraftTokens:
        """One pass over the known tokens (1, n) that are not in the slots, which it commits, and the canvas behind
        them; its choice for the first `num_read` = r positions behind the known ones.
        """
        clean_end = known.shape[1]
        start = self.pattern.reusable_length(self.cache.get_seq_length(), clean_end)
        self.cache.rollback(start)
        window = torch.cat([known[:, start:], canvas], dim=1)
        end = start + window.shape[1]
        positions = torch.arange(start, end, device=self.device)
        rows = torch.arange(num_read, device=self.device) + (clean_end - self.spec.shift - start)
        logits = self.runner(window, self.cache, rows, self.pattern.limit(positions, clean_end, end))
        self.cache.rollback(self.pattern.final_length(clean_end))
        return self._choose(logits)

    def _choose(self, logits: torch.Tensor) -> DraftTokens:
        """The target's ids that the drafter proposes at r positions (1, r, drafter's vocabulary)."""
        if self.vocabulary is None:
            return choose_tokens(logits, self.vocab_size, self.spec.mask_token_id, self.temperature)
        token_ids, confidence, probs = choose_tokens(logits, logits.shape[-1], None, self.temperature)
        if probs is not None:
            whole = probs.new_zeros(*probs.shape[:2], self.vocab_size)
            probs = whole.index_copy(-1, self.vocabulary, probs)
        return DraftTokens(self.vocabulary[token_ids], confidence, probs)

    def _noise(self, length: int) -> torch.Tensor:
        if self.spec.noise == "random":
            return torch.randint(self.vocab_size, (1, length), generator=self.generator, device=self.device)
        return torch.full((1, length), cast(int, self.spec.mask_token_id), device=self.device)
