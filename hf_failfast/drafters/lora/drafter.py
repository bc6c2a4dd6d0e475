"""The target drafts for itself: with a LoRA on the positions to be filled, and with the K/V of its own text.

Uno (arXiv 2609.04010) and I-DLM (arXiv 2604.11035, its LoRA for R-ISD) train such adapters. A round is two passes of
the target: one that drafts, and the verification. The K/V of the text are the target's own, so that a draft reads the
last token and nothing before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import nn

from ...config import FailFastConfig
from ...engine.causal_lm import CausalLM, execution_device, takes_logits_to_keep
from ...engine.ragged import RaggedIds
from ...engine.runner import EagerRunner
from ...policies.base import LengthPolicy
from ..base import DiffusionDrafter, Draft, DraftRequest, DraftSession
from ..checkpoints.target_fit import check_mask_token
from ..checkpoints.weights import LoadRequest, as_dtype, read_weights
from ..masked.session import MaskedSession
from ..spec import AttentionKind, DrafterSpec
from .view import Gate, LowRank, UpdatedLinear, view
from .weights import LoraWeights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# With these the known tokens are causal, as the target reads them.
ATTENTION = [kind for kind in get_args(AttentionKind) if kind not in ("block_causal", "bidirectional")]
EAGER = "a LoRA drafts in the slots of the target's own graphs"


class NoisedLM:
    """A causal LM that tells noise from text: noise has ids that are `offset` more than those of the tokens it shows.

    On the rows of noise its layers have the LoRA's updates.
    """

    def __init__(self, target: PreTrainedModel, updates: dict[str, LowRank]) -> None:
        self.gate = Gate()
        self.model = cast("PreTrainedModel", view(target, updates, self.gate))
        self.config = cast("PreTrainedConfig", target.config.get_text_config(decoder=True))
        self.offset = target.get_input_embeddings().weight.shape[0]
        self.leaves_out_logits = takes_logits_to_keep(cast(CausalLM, target))
        self.device = execution_device(target)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def modules(self) -> Iterator[nn.Module]:
        return self.model.modules()

    def __call__(self, *, input_ids: torch.Tensor, logits_to_keep: int | torch.Tensor, **inputs: Any) -> Any:
        is_noise = input_ids >= self.offset
        self.gate.rows = is_noise[..., None]
        if self.leaves_out_logits:
            inputs["logits_to_keep"] = logits_to_keep
        return self.model(input_ids=torch.where(is_noise, input_ids - self.offset, input_ids), **inputs)


class LoraDrafter(DiffusionDrafter):
    """A LoRA that makes its target a drafter. Any number of targets of the same shapes may share it."""

    has_alternatives = True

    def __init__(self, weights: LoraWeights, spec: DrafterSpec, config: FailFastConfig) -> None:
        if spec.attention not in ATTENTION:
            raise ValueError(
                f"`attention` must be one of {ATTENTION} for a LoRA of the target, which reads its text as ever, "
                f"but is {spec.attention!r}."
            )
        self.weights = weights
        self.spec = spec
        self.config = config

    def start(self, request: DraftRequest) -> DraftSession:
        self.check_target(request.target)
        model = NoisedLM(request.target, self.weights.updates)
        layers = (module for module in model.modules() if isinstance(module, UpdatedLinear))
        if any(weight.is_meta for layer in layers for weight in layer.base.parameters()):
            raise ValueError(
                "A LoRA drafts with the target's weights, and these are not at hand here: they are offloaded, or a "
                "server's own."
            )
        self.runners.explain(request.target, EAGER)
        self.weights.to(model.device)
        return LoraSession(model, self.spec, request)

    def check_target(self, target: PreTrainedModel) -> None:
        if self.spec.mask_token_id is not None and self.spec.noise == "mask":
            check_mask_token(self.spec.mask_token_id, target.get_input_embeddings().weight.shape[0])
        self.weights.check_fit(target if isinstance(target, nn.Module) else _outline(target.config))

    def modules(self) -> Iterator[nn.Module]:
        return self.weights.modules()


class LoraSession(MaskedSession):
    """Drafts in the target's slots, where there are some: in those after its text, and leaves them as they were.

    Before the target has read the text there is no draft: it would read all of it for nothing. Without slots the
    session reads the text itself, into slots of its own.
    """

    def __init__(self, model: NoisedLM, spec: DrafterSpec, request: DraftRequest) -> None:
        vocab_size = model.config.vocab_size
        super().__init__(EagerRunner(model), spec, vocab_size, request)
        self.offset = model.offset
        self.slots = request.slots
        self.judges = False  # its judgement of guessed tokens is the target's, which the verification makes anyway

    def draft(self, text: RaggedIds, policy: LengthPolicy, room: Sequence[int]) -> Draft:
        cache = None if self.slots is None else self.slots.cache
        if cache is None:
            return super().draft(text, policy, room)
        read = cache.lengths
        if any(length - slots > 1 for length, slots in zip(text.lengths, read, strict=True)):
            room = [0] * len(read)
        own, self.cache = self.cache, cache
        try:
            return super().draft(text, policy, room)
        finally:
            # A pass that failed may have left less than was read, which the target then reads again.
            cache.rollback([min(pair) for pair in zip(read, cache.lengths, strict=True)])
            self.cache = own

    @property
    def admissible(self) -> tuple[int, int | None]:
        """All of the target's ids: its mask token is one of them."""
        return self.vocab_size, None

    def _noise(self, num_rows: int, length: int) -> torch.Tensor:
        return super()._noise(num_rows, length) + self.offset


def load_lora(request: LoadRequest) -> LoraDrafter:
    """From a folder or repository in PEFT's format."""
    checkpoint = request.checkpoint
    if request.is_out_of_reach:
        return LoraDrafter(LoraWeights({}), checkpoint.spec, request.config)
    tensors = read_weights(checkpoint, headers_only=request.headers_only)
    weights = LoraWeights.of_peft(checkpoint.config, tensors)
    if request.dtype != "auto":
        weights.to(as_dtype(request.dtype))
    return LoraDrafter(weights.eval(), checkpoint.spec, request.config)


def _outline(config: PreTrainedConfig) -> nn.Module:
    """A target's modules without its weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model
