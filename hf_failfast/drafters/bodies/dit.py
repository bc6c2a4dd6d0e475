"""The diffusion transformer of MDLM (arXiv 2406.07524) and BD3-LM (arXiv 2503.09573), for drafting.

Written from the papers' description and the checkpoints' weight names. One sequence, no dropout, attention through the
runner's masks and slots as in a transformers causal LM, so that it drafts by the same session as every other body.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention, silu
from transformers import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutput

from ...compatibility import CACHE
from ...engine.slot_cache import SlotCache
from ..checkpoints.weights import LoadRequest, load_into

FREQUENCIES = 256  # of the timestep embedding
ROPE_BASE = 10_000.0
MLP_RATIO = 4


# Stored next to the weights: constants, and the ends of the noise schedule of BD3-LM's training.
BUFFERS = (r"rotary_emb\.inv_freq$", r"^sampling_eps_m(in|ax)$")


class DiTConfig(PreTrainedConfig):
    """The checkpoints' keys, under the names that runner and sessions ask for."""

    model_type = "dit"

    def __init__(
        self,
        vocab_size: int = 2,
        hidden_dim: int = 8,
        n_heads: int = 1,
        n_blocks: int = 1,
        cond_dim: int = 8,
        model_length: int = 1024,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.hidden_size = hidden_dim
        self.num_attention_heads = n_heads
        self.num_hidden_layers = n_blocks
        self.cond_dim = cond_dim
        self.max_position_embeddings = model_length


class DiT(nn.Module):
    """The checkpoint's weights; the names of the modules are the checkpoint's.

    Timesteps: the public checkpoints were trained without time conditioning, so that sigma is always 0 and every
    modulation a constant of the checkpoint. The logits follow the SUBS parametrisation: the mask token has none.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = _Backbone(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.output_layer.linear.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.backbone.output_layer.linear.weight.device

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.vocab_embed

    def forward(
        self,
        *,
        input_ids: torch.Tensor,  # (1, q)
        position_ids: torch.Tensor,  # (1, q)
        attention_mask: torch.Tensor,  # (1, 1, q, slots), bools
        logits_to_keep: int | torch.Tensor,
        **inputs: Any,  # the `SlotCache`, under transformers' name for a cache
    ) -> CausalLMOutput:
        """Logits (1, r, vocabulary) of the positions asked for, the mask token's at minus infinity."""
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.backbone(input_ids, position_ids, attention_mask, inputs[CACHE], kept)
        logits[..., self.config.vocab_size - 1] = -torch.inf
        return CausalLMOutput(logits=logits)


class _Backbone(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        self.vocab_embed = _Embedding(config.vocab_size, width)
        self.sigma_map = _TimestepEmbedding(config.cond_dim)
        self.blocks = nn.ModuleList(_Block(config, index) for index in range(config.num_hidden_layers))
        self.output_layer = _OutputLayer(config)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor,
        cache: SlotCache,
        kept: slice | torch.Tensor,
    ) -> torch.Tensor:
        """Raw logits (1, r, vocabulary)."""
        hidden = self.vocab_embed(input_ids)
        condition = silu(self.sigma_map(torch.zeros(1, device=hidden.device)))
        rotation = _rotation(position_ids, self.head_dim)
        for block in self.blocks:
            hidden = block(hidden, condition, rotation, mask, cache)
        logits: torch.Tensor = self.output_layer(hidden[:, kept], condition)
        return logits


class _Block(nn.Module):
    """Pre-norm attention and MLP, each shifted, scaled and gated by the condition (adaLN)."""

    def __init__(self, config: DiTConfig, index: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.index = index
        self.num_heads = config.num_attention_heads
        self.norm1 = _Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = _Norm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width), nn.GELU(approximate="tanh"), nn.Linear(MLP_RATIO * width, width)
        )
        self.adaLN_modulation = nn.Linear(config.cond_dim, 6 * width)

    def forward(
        self,
        hidden: torch.Tensor,  # (1, q, width)
        condition: torch.Tensor,  # (1, cond_dim)
        rotation: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        cache: SlotCache,
    ) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        attended = self._attend(self.norm1(hidden) * (1 + scale1) + shift1, rotation, mask, cache)
        hidden = hidden + gate1 * self.attn_out(attended)
        modulated: torch.Tensor = self.mlp(self.norm2(hidden) * (1 + scale2) + shift2)
        return hidden + gate2 * modulated

    def _attend(
        self,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        cache: SlotCache,
    ) -> torch.Tensor:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.attn_qkv(hidden).chunk(3, dim=-1)
        )
        key, value = cache.update(_rotate(key, rotation), value, self.index)
        attended = scaled_dot_product_attention(_rotate(query, rotation), key, value, attn_mask=mask)
        return attended.transpose(1, 2).flatten(2)


class _OutputLayer(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = _Norm(config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.vocab_size)
        self.adaLN_modulation = nn.Linear(config.cond_dim, 2 * config.hidden_size)

    def forward(self, hidden: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        logits: torch.Tensor = self.linear(self.norm_final(hidden) * (1 + scale) + shift)
        return logits


class _Embedding(nn.Module):
    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, width))

    @property
    def weight(self) -> torch.Tensor:
        return self.embedding

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embedding[input_ids]


class _Norm(nn.Module):
    """LayerNorm with a weight and no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return layer_norm(hidden, self.weight.shape, self.weight)


class _TimestepEmbedding(nn.Module):
    """Sinusoids of sigma through an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma: torch.Tensor) -> torch.Tensor:
        half = FREQUENCIES // 2
        rates = torch.exp(torch.arange(half, device=sigma.device) * (-math.log(10_000.0) / half))
        angles = sigma[:, None] * rates
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        embedding: torch.Tensor = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        return embedding


def load_dit(request: LoadRequest) -> DiT:
    """The diffusion transformer of a checkpoint. Raises ValueError on what the public ones do not have."""
    checkpoint = request.checkpoint
    if checkpoint.config.get("time_conditioning"):
        raise ValueError("`time_conditioning` is not supported: the public checkpoints have none, so sigma is 0 here.")
    config = DiTConfig(**checkpoint.config)
    if checkpoint.spec.mask_token_id != config.vocab_size - 1:
        raise ValueError(
            f"`mask_token_id` must be {config.vocab_size - 1}, the last id, for this body, "
            f"but is {checkpoint.spec.mask_token_id}."
        )
    with torch.device("meta"):
        transformer = DiT(config)
    load_into(transformer, request, ignored=BUFFERS)
    return transformer


def _rotation(positions: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (1, 1, q, head_dim) of the rotary embedding."""
    rates = ROPE_BASE ** (-torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    angles = (positions[:, None, :, None] * rates).repeat(1, 1, 1, 2)
    return angles.cos(), angles.sin()


def _rotate(states: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates (1, heads, q, head_dim) by halves, in float32."""
    cosines, sines = rotation
    first, second = states.float().chunk(2, dim=-1)
    return (states.float() * cosines + torch.cat([-second, first], dim=-1) * sines).to(states.dtype)
