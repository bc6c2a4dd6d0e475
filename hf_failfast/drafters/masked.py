"""Drafters whose body is a causal-LM decoder under another attention mask: nearly every public diffusion LM."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from ..config import FailFastConfig
from ..runners import CausalLM, EagerRunner
from .attention import attention_pattern
from .base import Chunk, DiffusionDrafter, DraftSession
from .shared import SharedBody
from .spec import DrafterSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Checkpoints pad one tokenizer's vocabulary to different sizes (151,936 and 152,064 for Qwen2.5).
MAX_VOCABULARY_PADDING = 512


class MaskedDrafter(DiffusionDrafter):
    """A native transformers causal LM (or layers that borrow the target's embedding and head) read by a spec."""

    def __init__(self, model: PreTrainedModel | SharedBody, spec: DrafterSpec, config: FailFastConfig) -> None:
        self.model = model
        self.spec = spec
        self.config = config

    def start(self, target: PreTrainedModel, capacity: int, eos_token_ids: torch.Tensor | None) -> MaskedSession:
        vocab_size = target.config.get_text_config(decoder=True).vocab_size
        self._check_vocabulary(vocab_size)
        model = self.model.attach(target) if isinstance(self.model, SharedBody) else cast(CausalLM, self.model)
        return MaskedSession(model, self.spec, capacity, vocab_size, eos_token_ids)

    def _check_vocabulary(self, vocab_size: int) -> None:
        own = self.model.config.get_text_config(decoder=True).vocab_size
        padding = abs(own - vocab_size)
        if padding > min(MAX_VOCABULARY_PADDING, max(own, vocab_size) // 8):
            raise ValueError(
                f"The drafter's vocabulary has {own} entries and the target's {vocab_size}: they cannot come from the "
                "same tokenizer. Use a drafter made for the target's tokenizer."
            )


class MaskedSession(DraftSession):
    """Drafts by filling masked positions. Final K/V stay in slots, so that no pass re-reads the prefix: the pass that
    drafts also commits the newly accepted tokens."""

    def __init__(
        self,
        model: CausalLM,
        spec: DrafterSpec,
        capacity: int,  # tokens of the whole sequence
        vocab_size: int,  # ids from here on are unknown to the target
        eos_token_ids: torch.Tensor | None,
    ) -> None:
        self.device = model.device
        super().__init__(None if eos_token_ids is None else eos_token_ids.to(self.device))
        block = spec.block_size or 1
        max_positions = getattr(model.config, "max_position_embeddings", None) or capacity + block
        self.spec = spec
        self.vocab_size = vocab_size
        self.last_id = model.config.vocab_size - 1  # stands for the target's ids that the drafter does not know
        self.vocabulary: torch.Tensor | None = getattr(model, "vocabulary", None)
        self.pattern = attention_pattern(spec)
        self.runner = EagerRunner(model)
        self.cache = self.runner.new_cache((capacity // block + 1) * block)
        self.last_position = max_positions // block * block
        self.generator = torch.Generator(self.device).manual_seed(0)

    def max_draft_length(self, num_tokens: int) -> int:
        return self.last_position - num_tokens

    def draft_chunk(self, token_ids: torch.Tensor, drafted: torch.Tensor, length: int) -> Chunk:
        known = torch.cat([token_ids, drafted], dim=1).to(self.device).clamp(max=self.last_id)
        first = known.shape[1]
        confidences = []
        while known.shape[1] < first + length:
            new_ids, confidence = self._denoise(known, first + length - known.shape[1])
            known = torch.cat([known, new_ids], dim=1)
            confidences.append(confidence)
        return Chunk(known[:, first:], torch.cat(confidences, dim=1), len(confidences))

    def accept(self, num_accepted: int) -> None:
        final = self.pattern.final_length(self.num_tokens + num_accepted)
        self.cache.rollback(min(self.cache.get_seq_length(), final))

    def _denoise(self, known: torch.Tensor, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass: commits the known tokens (1, n) that are not in the slots; gives ids and confidences (1, r)."""
        clean_end = known.shape[1]
        start = self.cache.get_seq_length()
        num_noise, num_read = self.pattern.plan(clean_end, wanted)
        window = torch.cat([known[:, start:], self._noise(num_noise)], dim=1)
        end = start + window.shape[1]
        positions = torch.arange(start, end, device=self.device)
        rows = torch.arange(num_read, device=self.device) + (clean_end - self.spec.shift - start)
        logits = self.runner(window, self.cache, rows, self.pattern.limit(positions, clean_end, end))
        self.cache.rollback(self.pattern.final_length(clean_end))
        return self._choose(logits)

    def _noise(self, length: int) -> torch.Tensor:
        if self.spec.noise == "random":
            return torch.randint(self.vocab_size, (1, length), generator=self.generator, device=self.device)
        return torch.full((1, length), cast(int, self.spec.mask_token_id), device=self.device)

    def _choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Most likely admissible ids and their probability under the drafter's whole distribution, both (1, r).

        The mask token and ids the target does not know are not admissible; their mass counts as doubt.
        """
        logits = logits.float()
        normaliser = logits.logsumexp(dim=-1)
        if self.vocabulary is None:
            logits = logits[..., : self.vocab_size]
            if self.spec.mask_token_id is not None and self.spec.mask_token_id < logits.shape[-1]:
                logits[..., self.spec.mask_token_id] = -torch.inf
        best, ids = logits.max(dim=-1)
        if self.vocabulary is not None:
            ids = self.vocabulary[ids]
        return ids, (best - normaliser).exp()
