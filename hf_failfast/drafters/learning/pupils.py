"""What learning needs to know of a drafter: its body, and what a pass of it feeds and reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from ...engine.causal_lm import CausalLM
from ..base import DiffusionDrafter
from ..bodies.borrowed import SharedBody
from ..bodies.dit import DiT
from ..bodies.fusion import StateFusion
from ..conditioned.canvas import ConditionedDrafter, HiddenStateInjection
from ..masked.attention_patterns import AttentionPattern, attention_pattern
from ..masked.session import MaskedDrafter
from ..spec import DrafterSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Pupil:
    """A drafter whose body is a causal LM of transformers.

    canvas_length: tokens that it learns to draft in one pass.
    source_layers: the target's layers whose hidden states it reads, if it reads any.
    injection: how these states get into its layers.
    """

    body: SharedBody | PreTrainedModel
    spec: DrafterSpec
    pattern: AttentionPattern
    canvas_length: int
    source_layers: tuple[int, ...] = ()
    injection: HiddenStateInjection | None = None

    @classmethod
    def of(cls, drafter: DiffusionDrafter) -> Pupil:
        """Raises ValueError naming the drafter if it cannot learn."""
        if isinstance(drafter, ConditionedDrafter):
            pattern = attention_pattern(drafter.spec)
            length = drafter.canvas_length
            return cls(drafter.body, drafter.spec, pattern, length, drafter.target_layers, drafter.injection)
        if not isinstance(drafter, MaskedDrafter) or isinstance(drafter.model, DiT):
            body = drafter.model if isinstance(drafter, MaskedDrafter) else drafter
            raise ValueError(
                f"`drafter` cannot learn: {type(body).__name__} has no causal LM of transformers as its body. "
                "Standalone, conditioned and masked drafters with one can."
            )
        if drafter.options.mode == "reference":
            raise ValueError("`drafter` cannot learn with `mode='reference'`: load it with `mode='fused'`.")
        pattern = attention_pattern(drafter.spec, drafter.options.prefix_block)
        return cls(drafter.model, drafter.spec, pattern, drafter.config.chunk_length)

    @property
    def fusion(self) -> StateFusion | None:
        """What adds the newest hidden states to the input, of a conditioned drafter that has it."""
        return self.body.fusion if isinstance(self.body, SharedBody) else None

    @property
    def shares_context(self) -> bool:
        """Whether the canvases of one text can share a pass: its known tokens see none of them."""
        return self.spec.attention == "causal_canvas"

    @property
    def block(self) -> int:
        """A text is cut at multiples of it."""
        return self.spec.block_size or 1

    def attach(self, target: PreTrainedModel) -> tuple[CausalLM, nn.Module]:
        """The body as it drafts for this target, and its head."""
        if isinstance(self.body, SharedBody):
            model = self.body.attach(target)
            return model, model.head
        head = self.body.get_output_embeddings()
        return cast(CausalLM, self.body), head[0] if isinstance(head, nn.Sequential) else head

    def noise(self, length: int, vocab_size: int, generator: torch.Generator) -> torch.Tensor:
        """(length,) what stands at positions to be filled."""
        if self.spec.noise == "random":
            return torch.randint(self.spec.num_noise_ids(vocab_size), (length,), generator=generator)
        return torch.full((length,), cast(int, self.spec.mask_token_id))
