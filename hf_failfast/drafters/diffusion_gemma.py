"""DiffusionGemma, native to transformers: a causal encoder of the text, and a decoder that fills a random canvas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from ..compatibility import CACHE
from ..config import FailFastConfig
from ..engine.ragged import RaggedIds
from ..engine.slot_cache import SlotCache, layer_windows
from .base import DiffusionDrafter, DraftRequest, DraftSession, PerRow
from .checkpoints.target_fit import check_vocabulary
from .checkpoints.weights import LoadRequest, load_native
from .chunks import Chunk, ChunkedSession
from .denoising import choose_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DiffusionGemmaDrafter(DiffusionDrafter):
    """One denoising step per chunk on a canvas as long as the chunk.

    The model's own sampler takes up to 48 steps on a canvas of 256 tokens. Here one step is enough, since a drafter's
    tokens are verified. Whether short canvases draft well has not been checked on the public weights.
    """

    has_alternatives = True

    def __init__(self, model: Any, config: FailFastConfig) -> None:
        self.model = model
        self.config = config

    @property
    def own_model(self) -> Any:
        return self.model

    def start(self, request: DraftRequest) -> DraftSession:
        self.check_target(request.target)
        vocab_size = request.target.config.get_text_config(decoder=True).vocab_size
        self.runners.explain(request.target, "DiffusionGemma's canvas reads slots of any number")
        return PerRow.of(request, lambda one: DiffusionGemmaSession(self.model, vocab_size, one))

    def check_target(self, target: PreTrainedModel) -> None:
        vocab_size = target.config.get_text_config(decoder=True).vocab_size
        check_vocabulary(self.model.config.text_config.vocab_size, vocab_size)

    def modules(self) -> Iterator[nn.Module]:
        modules: Iterator[nn.Module] = self.model.modules()
        return modules


class DiffusionGemmaSession(ChunkedSession):
    """Encodes what is new, causally and for good, then reads a canvas of random tokens against the slots."""

    takes_back = True

    def __init__(self, model: Any, vocab_size: int, request: DraftRequest) -> None:
        self.device = model.device
        super().__init__(request.eos_on(self.device))
        self.warp = request.warp
        self.num_alternatives = request.num_alternatives
        config = model.config.text_config
        self.model = model
        self.own_vocab_size = config.vocab_size
        self.vocab_size = vocab_size
        self.windows = layer_windows(config)
        self.cache = SlotCache(len(self.windows), request.capacity)
        self.last_position = config.max_position_embeddings
        self.generator = torch.Generator(self.device).manual_seed(0)

    def max_draft_length(self, num_tokens: int) -> int:
        return self.last_position - num_tokens

    def accept(self, counts: Sequence[int]) -> None:
        self.cache.rollback(min(self.cache.get_seq_length(), self.lengths[0] + counts[0]))

    def inherit(self, previous: Self, num_tokens: int, rows: tuple[int, int] = (0, 0)) -> int:
        self.cache.adopt(previous.cache, num_tokens)
        return self.cache.lengths[0]

    def draft_chunk(self, known: RaggedIds, length: int) -> Chunk:
        ids = known.ids.to(self.device).clamp(max=self.own_vocab_size - 1)
        positions = torch.arange(ids.shape[1] + length, device=self.device)[None]
        start, end = self.cache.get_seq_length(), ids.shape[1]
        self.model.model.encoder.language_model(
            input_ids=ids[:, start:], position_ids=positions[:, start:end], **{CACHE: self.cache}
        )
        self.cache.advance(end - start)
        logits = self.model(
            decoder_input_ids=torch.randint(
                self.own_vocab_size, (1, length), generator=self.generator, device=self.device
            ),
            decoder_position_ids=positions[:, end:],
            # Everything in the view is visible: no mask for either kind of layer.
            decoder_attention_mask={"full_attention": None, "sliding_attention": None},
            **{CACHE: self._view(end)},
        ).logits
        tokens = choose_tokens(logits, self.vocab_size, None, self.warp, self.num_alternatives)
        return Chunk(tokens.token_ids, tokens.confidence, 2, tokens.probs, tokens.alternatives)

    def _view(self, length: int) -> SimpleNamespace:
        """The slots in the form of the decoder's cache; sliding layers are cut to what transformers would keep."""
        layers = []
        for layer, window in zip(self.cache.layers, self.windows, strict=True):
            visible = slice(0 if window is None else max(length - window.size + 1, 0), length)
            layers.append(SimpleNamespace(keys=layer.keys[:, :, visible], values=layer.values[:, :, visible]))
        return SimpleNamespace(layers=layers, is_compileable=False, get_seq_length=lambda *_, **__: length)


def load_diffusion_gemma(request: LoadRequest) -> DiffusionGemmaDrafter:
    """A drafter from a checkpoint in transformers' own format."""
    from transformers import DiffusionGemmaForBlockDiffusion

    return DiffusionGemmaDrafter(load_native(request, DiffusionGemmaForBlockDiffusion).eval(), request.config)
