"""DFlash (arXiv 2602.06036): a block drafter that reads the target's hidden states.

Two bodies, one session: `DFlashBody` for the z-lab checkpoint format, written from the paper's description and the
checkpoints' weight names, its layers transformers' Qwen3 layers; `NativeDFlashBody` for transformers' own class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.functional import embedding, scaled_dot_product_attention

from ...compatibility import CACHE
from ...config import FailFastConfig
from ...engine.causal_lm import execution_device, in_place
from ...engine.slot_cache import SlotCache
from ..base import DiffusionDrafter, DraftRequest, DraftSession, PerRow
from ..checkpoints.target_fit import check_layers, check_mask_token, check_states, check_vocabulary, check_width
from ..checkpoints.weights import LoadRequest, load_into, load_native
from ..denoising import DraftTokens, choose_tokens
from .block_session import CONDITIONED, BlockSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DFlashBody(nn.Module):
    """Layers whose queries come from a block [last token, masks ...]. Keys and values come from the block and in every
    layer from the context: the target's hidden states of all tokens before the block, fused by `fc`.

    Has neither embedding nor head: both are the target's. The names of the modules are the checkpoint's.
    """

    def __init__(self, config: Any, num_features: int) -> None:
        from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding

        super().__init__()
        self.config = config
        self.num_features = num_features
        self.layers = nn.ModuleList(Qwen3DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.fc = nn.Linear(num_features, config.hidden_size, bias=False)
        self.hidden_norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        with torch.device("cpu"):  # computed, not loaded: it stays off the meta device
            self.rotary = Qwen3RotaryEmbedding(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.fc.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.fc.weight.device

    def forward(self, block: torch.Tensor, features: torch.Tensor, cache: SlotCache) -> torch.Tensor:
        """Hidden states (1, b, width) of the embedded block (1, b, width).

        features: (1, m, features), the context tokens that are not in the slots. Afterwards the slots hold them, and
            the block after them.
        """
        context = self.hidden_norm(self.fc(features))
        start = cache.get_seq_length()
        end = start + context.shape[1] + block.shape[1]
        positions = torch.arange(start, end, device=block.device)
        rotation = self.rotary(block, positions[None])
        hidden = block
        for index, layer in enumerate(cast("list[Any]", self.layers)):
            mask = self._mask(index, positions[-block.shape[1] :], end)
            hidden = hidden + self._attend(index, layer.input_layernorm(hidden), context, rotation, mask, cache)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        cache.advance(context.shape[1] + block.shape[1])
        normed: torch.Tensor = self.norm(hidden)
        return normed

    def _attend(
        self,
        index: int,
        block: torch.Tensor,
        context: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: SlotCache,
    ) -> torch.Tensor:
        from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

        attention: Any = self.layers[index].self_attn
        heads = (-1, attention.head_dim)
        source = torch.cat([context, block], dim=1)
        query = attention.q_norm(attention.q_proj(source).unflatten(-1, heads)).transpose(1, 2)
        key = attention.k_norm(attention.k_proj(source).unflatten(-1, heads)).transpose(1, 2)
        value = attention.v_proj(source).unflatten(-1, heads).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        key, value = cache.update(key, value, index)
        query = query[:, :, -block.shape[1] :]
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        projected: torch.Tensor = attention.o_proj(attended.transpose(1, 2).flatten(2))
        return projected

    def _mask(self, index: int, positions: torch.Tensor, end: int) -> torch.Tensor | None:
        """Full layers see everything, the whole block too; sliding ones are causal and windowed."""
        if self.config.layer_types[index] != "sliding_attention":
            return None
        slots = torch.arange(end, device=positions.device)
        return (slots <= positions[:, None]) & (slots > positions[:, None] - self.config.sliding_window)


class NativeDFlashBody(nn.Module):
    """`DFlashBody`'s interface over the class that transformers drafts with itself (`MuseGlimmerAssistantModel`)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.num_features = model.encoder.fc.in_features

    @property
    def layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.model.layers
        return layers

    @property
    def dtype(self) -> torch.dtype:
        return self.model.encoder.fc.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.encoder.fc.weight.device

    def forward(self, block: torch.Tensor, features: torch.Tensor, cache: SlotCache) -> torch.Tensor:
        """See `DFlashBody.forward`."""
        start = cache.get_seq_length() + features.shape[1]
        slots = torch.arange(start + block.shape[1], device=block.device)
        # In both directions; a distance equal to the window is inside.
        near = (slots - slots[start:, None]).abs() <= self.config.sliding_window
        masks = {"full_attention": None, "sliding_attention": near[None, None]}
        hidden: torch.Tensor = self.model(
            noise_embeds=block, context_hidden_states=features, attention_mask=masks, **{CACHE: cache}
        ).last_hidden_state
        cache.advance(features.shape[1] + block.shape[1])
        return hidden


class DFlashDrafter(DiffusionDrafter):
    """A DFlash checkpoint: drafts up to `block_size` - 1 tokens in one pass, from the second round on."""

    has_alternatives = True

    def __init__(
        self,
        body: DFlashBody | NativeDFlashBody,
        target_layers: tuple[int, ...],
        block_size: int,
        mask_token_id: int,
        config: FailFastConfig,
    ) -> None:
        self.body = body
        self.target_layers = target_layers  # indices into `hidden_states`
        self.block_size = block_size
        self.mask_token_id = mask_token_id
        self.config = config

    def start(self, request: DraftRequest) -> DraftSession:
        self._check(request.target)
        self.runners.explain(request.target, CONDITIONED)
        return PerRow.of(request, lambda one: DFlashSession(self, one))

    def modules(self) -> Iterator[nn.Module]:
        return self.body.modules()

    def _check(self, target: PreTrainedModel) -> None:
        config, own = target.config.get_text_config(decoder=True), self.body.config
        if getattr(own, "vocab_size", None) is not None:  # the native body has none to compare
            check_vocabulary(own.vocab_size, config.vocab_size)
        check_mask_token(self.mask_token_id, target.get_input_embeddings().weight.shape[0])
        check_states(config)
        check_width(own.hidden_size, config.hidden_size, len(self.target_layers))
        read = [state - 1 for state in self.target_layers]
        check_layers(read, config.num_hidden_layers, getattr(own, "num_target_layers", None))


class DFlashSession(BlockSession):
    """Drafts one block per round; the original always proposes the whole block."""

    def __init__(self, drafter: DFlashDrafter, request: DraftRequest) -> None:
        target = request.target
        self.body = drafter.body
        self.device = self.body.device
        self.target_layers = drafter.target_layers
        self.mask_token_id = drafter.mask_token_id
        self.embedding = target.get_input_embeddings()
        self.head = target.get_output_embeddings()
        self.vocab_size = target.config.get_text_config(decoder=True).vocab_size
        self.warp = request.warp
        self.num_alternatives = request.num_alternatives
        super().__init__(
            SlotCache(len(self.body.layers), request.capacity + drafter.block_size),
            torch.zeros(1, 0, self.body.num_features, dtype=self.body.dtype, device=self.device),
            drafter.block_size - 1,
            request.eos_on(self.device),
        )

    def observe(self, states: Sequence[torch.Tensor]) -> None:
        self.features = torch.cat([self.features, states[0].to(self.device, self.body.dtype)], dim=1)

    def draft_block(self, known: torch.Tensor) -> DraftTokens:
        device = execution_device(self.embedding)
        masks = torch.full((1, self.block_length), self.mask_token_id, device=device)
        window = torch.cat([known.to(device), masks], dim=1)  # a draft ends with the block: no token is drafted yet
        embedded = self._embed(window).to(self.device, self.body.dtype)
        context = self.cache.get_seq_length() + self.features.shape[1]
        hidden = self.body(embedded, self.features, self.cache)
        self.cache.rollback(context)
        self.features = self.features[:, :0]
        logits = self.head(hidden[:, 1:].to(execution_device(self.head), self.head.weight.dtype)).to(self.device)
        return choose_tokens(logits, self.vocab_size, self.mask_token_id, self.warp, self.num_alternatives)

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The target's embedding, without its normalisation if it has one: DFlash was trained without."""
        if hasattr(self.embedding, "embed_norm"):
            with in_place(self.embedding):
                return embedding(token_ids, self.embedding.weight)
        embedded: torch.Tensor = self.embedding(token_ids)
        return embedded


def load_dflash(request: LoadRequest) -> DFlashDrafter:
    """A drafter from a checkpoint in the z-lab format."""
    from transformers import Qwen3Config

    config = Qwen3Config.from_dict(request.checkpoint.config)
    layer_ids = request.checkpoint.config["target_layer_ids"]
    with torch.device("meta"):
        body = DFlashBody(config, num_features=len(layer_ids) * config.hidden_size)
    load_into(body, request)
    return _drafter(body.eval().to(body.device), layer_ids, request)


def load_dflash_assistant(request: LoadRequest) -> DFlashDrafter:
    """A drafter from a checkpoint of transformers' own DFlash class."""
    from transformers import AutoModel

    body = NativeDFlashBody(load_native(request, AutoModel))
    return _drafter(body.eval(), body.config.target_layer_ids, request)


def _drafter(body: DFlashBody | NativeDFlashBody, layer_ids: Sequence[int], request: LoadRequest) -> DFlashDrafter:
    spec = request.checkpoint.spec
    layers = tuple(layer_id + 1 for layer_id in layer_ids)  # hidden state 0 is the embedding
    return DFlashDrafter(body, layers, cast(int, spec.block_size), cast(int, spec.mask_token_id), request.config)
