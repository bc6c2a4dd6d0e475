"""Drafter layers that borrow the target's embedding and head, so that a checkpoint holds only what was trained."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from ...engine.causal_lm import DecoderParts, execution_device, in_place
from ..checkpoints.target_fit import check_width
from ..spec import DrafterSpec
from .fusion import StateFusion

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ReducedHeads(WeakKeyDictionary[nn.Module, nn.Linear]):
    """What is left of each target's head; made anew in a copy or another process."""

    def __reduce__(self) -> tuple[type[ReducedHeads], tuple[()]]:
        return ReducedHeads, ()

    def __deepcopy__(self, memo: object) -> ReducedHeads:
        return ReducedHeads()


class SharedBody(nn.Module):
    """Decoder layers, final norm and one mask embedding; optionally a reduced draft vocabulary.

    decoder: the transformers base model (`LlamaModel`, ...), called with `inputs_embeds` only.
    mask_embedding: (hidden,), of the positions to be filled; the mask id lies beyond the target's vocabulary.
    spec: names the mask id.
    draft_vocabulary: (Vd,) target ids that the drafter can propose; None for all of them.
    fusion: of a conditioned drafter whose rows' input holds the target's states too.

    head_bias: from logits to logits, what an adapter adds to the borrowed head; None: nothing.
    """

    head_bias: nn.Module | None

    def __init__(
        self,
        decoder: PreTrainedModel,
        mask_embedding: torch.Tensor,
        spec: DrafterSpec,
        draft_vocabulary: torch.Tensor | None = None,
        fusion: StateFusion | None = None,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.decoder = decoder
        self.config = decoder.config
        assert spec.mask_token_id is not None  # the body has one learned embedding, for this id
        self.mask_token_id = spec.mask_token_id
        self.mask_embedding = nn.Parameter(mask_embedding)
        self.draft_vocabulary: torch.Tensor | None
        self.register_buffer("draft_vocabulary", None if draft_vocabulary is None else draft_vocabulary.long())
        self.head_bias = None
        self._reduced_heads = ReducedHeads()

    def check_target(self, target: PreTrainedModel) -> None:
        """Raises ValueError if the target's embedding has another width."""
        check_width(self.config.hidden_size, target.get_input_embeddings().embedding_dim)

    def attach(self, target: PreTrainedModel) -> BorrowingLM:
        """The drafter as a causal LM on this target's embedding and head; moves the layers to the target's device."""
        self.check_target(target)
        self.to(execution_device(target.get_input_embeddings()))
        return BorrowingLM(self, target.get_input_embeddings(), self._head(target))

    def _head(self, target: PreTrainedModel) -> nn.Module:
        full = target.get_output_embeddings()
        if self.draft_vocabulary is None:
            return full
        if full not in self._reduced_heads:
            with in_place(full):
                weight = full.weight[self.draft_vocabulary].detach()
                head = nn.Linear(weight.shape[1], weight.shape[0], bias=full.bias is not None, device="meta")
                head.weight = nn.Parameter(weight, requires_grad=False)
                if full.bias is not None:
                    head.bias = nn.Parameter(full.bias[self.draft_vocabulary].detach(), requires_grad=False)
            self._reduced_heads[full] = head.eval()  # as are all modules that a forward runs through
        return self._reduced_heads[full]


class BorrowingLM:
    """A `SharedBody` between one target's embedding and head: the call of a transformers causal LM."""

    def __init__(self, body: SharedBody, embedding: nn.Module, head: nn.Module) -> None:
        self.body = body
        self.embedding = embedding
        self.head = head
        self.config = body.config
        self.vocabulary = body.draft_vocabulary

    def modules(self) -> Iterator[nn.Module]:
        """Every module whose weights a forward reads."""
        return chain(self.body.modules(), self.embedding.modules(), self.head.modules())

    @property
    def dtype(self) -> torch.dtype:
        return self.body.mask_embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.body.mask_embedding.device

    def __call__(
        self, *, input_ids: torch.Tensor, logits_to_keep: int | torch.Tensor, **inputs: Any
    ) -> CausalLMOutput:
        is_mask = input_ids.eq(self.body.mask_token_id)
        embeddings = self.embedding(input_ids.masked_fill(is_mask, 0)).to(self.dtype)
        embeddings = torch.where(is_mask[..., None], self.body.mask_embedding, embeddings)
        hidden = self.body.decoder(inputs_embeds=embeddings, **inputs).last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutput(logits=self._logits(hidden[:, kept]))

    def decoder_parts(self) -> DecoderParts:
        """What the call consists of."""
        body = self.body
        return DecoderParts(self.embedding, body.decoder, self._logits, body.mask_token_id, body.mask_embedding)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        head: Any = self.head
        logits: torch.Tensor = head(hidden.to(head.weight.dtype))
        return logits if self.body.head_bias is None else self.body.head_bias(logits)
