"""The layers of DFlash (arXiv 2602.06036): a block attends to itself and to the target's hidden states before it.

DFlash 2 adds a convolution around each sublayer and a selector that walks through each position's candidates.
`DFlashBody` is for the z-lab checkpoint format, written from the paper's description and the checkpoints' weight
names, its layers transformers' Qwen3 layers; `NativeDFlashBody` for transformers' own class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention

from ...compatibility import CACHE
from ...engine.slot_cache import SlotCache

# From a position and the tokens (B,) before it to the logits (B, V) of the position.
Step = Callable[[int, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LayerSight:
    """What the positions of a block see in a layer.

    causal: no later position of the block.
    window: only positions nearer than this; None: however far.
    from_anchor: whether the window counts from the block's first position, for all of the block; otherwise from each.
    """

    causal: bool
    window: int | None
    from_anchor: bool = False

    def mask(self, positions: torch.Tensor, end: int) -> torch.Tensor | None:
        """bool (b, end), for block positions (b,) and slots up to `end`; None if everything is seen."""
        if not self.causal and self.window is None:
            return None
        distance = positions[:, None] - torch.arange(end, device=positions.device)
        seen = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if self.window is None:
            return seen
        if self.from_anchor:
            return seen & (distance[:1] <= self.window)
        return seen & (distance.abs() < self.window)


def layer_sights(config: Any, values: Mapping[str, Any]) -> list[LayerSight]:
    """The sight of each layer.

    config: transformers' `Qwen3Config`, which has no window unless `use_sliding_window` is set.
    values: of the checkpoint. `is_causal` holds for all layers; without it the sliding ones are causal. `use_swa` asks
        for a window in the sliding layers, or in all if none is named so. `sliding_window_non_causal` (of the
        speculators format) holds for the sliding layers, whose window then counts from the block's first position.

    Raises ValueError if there is no window where one is asked for.
    """
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    window = values.get("swa_window_size") or config.sliding_window
    is_windowed = sliding
    if values.get("use_swa"):
        window = window or values.get("sliding_window")
        is_windowed = sliding if any(sliding) else [True] * len(sliding)
        if window is None:
            raise ValueError("`use_swa` needs `swa_window_size` or `sliding_window`, but the config has neither.")
    is_causal, both_ways = values.get("is_causal"), values.get("sliding_window_non_causal")
    if both_ways is not None:
        is_causal = window is not None and not both_ways
        return [LayerSight(each and is_causal, window if each else None, from_anchor=True) for each in sliding]
    return [
        LayerSight(causal if is_causal is None else bool(is_causal), window if windowed else None)
        for causal, windowed in zip(sliding, is_windowed, strict=True)
    ]


class LocalConvolution(nn.Module):
    """Mixes each position with the few before it in the block, once before and once after a sublayer (DFlash 2).

    The weight of a tap is one per channel, plus one per group of channels that comes from the position itself.
    """

    def __init__(self, width: int, num_taps: int, group_size: int) -> None:
        super().__init__()
        self.num_taps = num_taps
        self.group_size = group_size
        self.base_kernel = nn.Parameter(torch.empty(2, num_taps, width))
        self.kernel_projection = nn.Linear(width, 2 * num_taps * (width // group_size), bias=False)

    def around(self, sublayer: Callable[[torch.Tensor], torch.Tensor], block: torch.Tensor) -> torch.Tensor:
        """The sublayer's output for a block (1, b, width), both mixed by kernels that the unmixed block chooses."""
        by_group = self.kernel_projection(block).unflatten(-1, (2, self.num_taps, -1))
        kernels = self.base_kernel.to(block.dtype) + by_group.repeat_interleave(self.group_size, dim=-1)
        before, after = kernels.unbind(dim=2)  # (1, b, taps, width) each
        return self._mixed(sublayer(self._mixed(block, before)), after)

    def _mixed(self, block: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        length = block.shape[1]
        earlier = [pad(block, (0, 0, tap, 0))[:, :length] for tap in range(self.num_taps)]
        return (torch.stack(earlier, dim=2) * kernel).sum(dim=2)


class CandidateSelector(nn.Module):
    """Scores each position's candidates given the token chosen before it (DFlash 2): the product of three vectors, of
    that token, of the position's hidden state and of the candidate, on top of the candidate's logit.

    num_candidates: how many of a position's most likely tokens are scored.
    """

    def __init__(self, vocab_size: int, width: int, rank: int, num_candidates: int) -> None:
        super().__init__()
        self.num_candidates = num_candidates
        self.predecessor_codebook = nn.Parameter(torch.empty(vocab_size, rank))
        self.successor_codebook = nn.Parameter(torch.empty(vocab_size, rank))
        self.hidden_projection = nn.Linear(width, rank, bias=False)

    def walk(self, hidden: torch.Tensor, logits: torch.Tensor) -> Step:
        """The step from a token to the scores of the next position, for hidden states (B, n, width) and logits
        (B, n, V); a token that is not a candidate has none."""
        known = len(self.successor_codebook)
        best, candidates = logits[..., :known].topk(min(self.num_candidates, known), dim=-1)
        successors = self.successor_codebook[candidates]  # (B, n, c, rank)
        projected = self.hidden_projection(hidden)

        def step(position: int, previous: torch.Tensor) -> torch.Tensor:
            context = self.predecessor_codebook[previous.clamp(max=known - 1)] * projected[:, position]
            scores = best[:, position] + (successors[:, position] @ context[..., None])[..., 0].to(best.dtype)
            nothing = torch.full_like(logits[:, position], -torch.inf)
            return nothing.scatter(-1, candidates[:, position], scores)

        return step


class MarkovHead(nn.Module):
    """Adds to a position's logits what the token before it makes likely, by a product of low rank (DSpark).

    kind: `vanilla`, by the token alone; `gated` by the position's hidden state; `rnn` by all tokens of the block so
        far.
    """

    def __init__(self, kind: str, vocab_size: int, draft_vocab_size: int, width: int, rank: int) -> None:
        super().__init__()
        self.kind = kind
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, draft_vocab_size, bias=False)
        if kind == "gated":
            self.gate_proj = nn.Linear(width + rank, rank)
        elif kind == "rnn":
            self.joint_proj = nn.Linear(2 * rank + width, 3 * rank)
        elif kind != "vanilla":
            raise ValueError(f"`markov_head_type` must be 'vanilla', 'gated' or 'rnn', but is {kind!r}.")

    def of(self, token_ids: torch.Tensor) -> torch.Tensor:
        """What is kept of tokens (B,): (B, rank)."""
        weight = self.markov_w1.weight
        return weight[token_ids.clamp(max=len(weight) - 1)]

    def walk(self, hidden: torch.Tensor, logits: torch.Tensor) -> Step:
        """The step from a token to the logits of the next position, for hidden states (B, n, width) and logits
        (B, n, V); to be taken in order."""
        state = hidden.new_zeros(len(hidden), self.markov_w2.in_features)

        def step(position: int, previous: torch.Tensor) -> torch.Tensor:
            nonlocal state
            token = self.of(previous)
            here = hidden[:, position].expand(len(token), -1)
            if self.kind == "gated":
                token = torch.sigmoid(self.gate_proj(torch.cat([here, token], dim=-1))) * token
            elif self.kind == "rnn":
                joint = torch.cat([state.expand_as(token), token, here], dim=-1)
                gate, new, out = self.joint_proj(joint).chunk(3, dim=-1)
                state = torch.sigmoid(gate) * state + (1 - torch.sigmoid(gate)) * torch.tanh(new)
                token = torch.tanh(out)
            return logits[:, position] + self.markov_w2(token).to(logits.dtype)

        return step


class AcceptanceHead(nn.Module):
    """The probability that the target accepts a position's token, trained as such (DSpark).

    It is known before the token: a function of the position's hidden state and, with a Markov head, of the token
    before.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 1)

    def forward(self, hidden: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        """fp32 (B,), for hidden states (B, width) and what the Markov head keeps of the tokens before (B, rank)."""
        features = hidden if before is None else torch.cat([hidden.expand(len(before), -1), before], dim=-1)
        return torch.sigmoid(self.proj(features)[..., 0].float())


def seen_by(positions: torch.Tensor, end: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """bool (b, end): the slots that hold the text or the block, for block positions (b,), and of these the masked."""
    seen = (torch.arange(end, device=positions.device) <= positions[-1]).expand(len(positions), -1)
    return seen if mask is None else seen & mask


class DFlashBody(nn.Module):
    """Layers whose queries come from a block [last token, masks ...]. Keys and values come from the block and in every
    layer from the context: the target's hidden states of all tokens before the block, fused by `fc`.

    Has neither embedding nor head: both are the target's. The names of the modules are the checkpoint's.
    """

    d2t: torch.Tensor
    t2d: torch.Tensor

    def __init__(self, config: Any, num_features: int, sights: list[LayerSight]) -> None:
        from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding

        super().__init__()
        self.config = config
        self.num_features = num_features
        self.sights = sights
        self.candidate_selector: CandidateSelector | None = None
        self.markov_head: MarkovHead | None = None
        self.confidence_head: AcceptanceHead | None = None
        self.lm_head: nn.Linear | None = None  # of its own only with a reduced vocabulary
        self.layers = nn.ModuleList(Qwen3DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.fc = nn.Linear(num_features, config.hidden_size, bias=False)
        self.hidden_norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        with torch.device("cpu"):  # computed, not loaded: it stays off the meta device
            self.rotary = Qwen3RotaryEmbedding(config)

    def reduce_vocabulary(self, draft_vocab_size: int) -> None:
        """A head of its own over some of the target's ids."""
        self.lm_head = nn.Linear(self.config.hidden_size, draft_vocab_size, bias=False)
        self.register_buffer("d2t", torch.empty(draft_vocab_size, dtype=torch.long))  # target's id minus own
        self.register_buffer("t2d", torch.empty(self.config.vocab_size, dtype=torch.bool))

    @property
    def vocabulary(self) -> torch.Tensor | None:
        """The target's ids that the own head stands for; None: all of them."""
        if self.lm_head is None:
            return None
        return torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t

    def add_convolutions(self, num_taps: int, group_size: int) -> None:
        """Puts the convolutions of DFlash 2 around the sublayers. Raises ValueError on sizes that do not fit."""
        width = self.config.hidden_size
        if num_taps < 1 or group_size < 1 or width % group_size:
            raise ValueError(
                f"`conv_group_size` must divide the width of {width}, and `conv_kernel_size` be >= 1, but they are "
                f"{group_size} and {num_taps}."
            )
        for layer in cast("list[Any]", self.layers):
            layer.attention_conv = LocalConvolution(width, num_taps, group_size)
            layer.mlp_conv = LocalConvolution(width, num_taps, group_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.fc.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.fc.weight.device

    def forward(
        self, block: torch.Tensor, features: torch.Tensor, positions: torch.Tensor, cache: SlotCache
    ) -> torch.Tensor:
        """Hidden states (1, b, width) of the embedded block (1, b, width).

        features: (1, m, features), of the context tokens that are not in the slots. The slots take them in, and the
            block after them; whoever calls says how many of these count.
        positions: (1, m + b), the block's last; slots beyond the last of all are not seen.
        """
        own, end = positions[0, -block.shape[1] :], cache.get_mask_sizes(positions.shape[1], 0)[0]
        masks = [seen_by(own, end, sight.mask(own, end)) for sight in self.sights]
        return self.read(block, features, positions, masks, cache)

    def read(
        self,
        block: torch.Tensor,
        features: torch.Tensor,
        positions: torch.Tensor,
        masks: Sequence[torch.Tensor],
        cache: SlotCache | None = None,
    ) -> torch.Tensor:
        """`forward` with the sight given, for any number of rows.

        masks: of each layer, what the block sees: bool (b, slots), or (B, 1, b, m + b) where there are no slots.
        """
        context = self.hidden_norm(self.fc(features))
        rotation = self.rotary(block, positions)
        hidden = block
        for index, layer in enumerate(cast("list[Any]", self.layers)):
            attend = partial(self._attend, index, context=context, rotation=rotation, mask=masks[index], cache=cache)
            hidden = hidden + self._around(layer, "attention_conv", attend)(layer.input_layernorm(hidden))
            hidden = hidden + self._around(layer, "mlp_conv", layer.mlp)(layer.post_attention_layernorm(hidden))
        normed: torch.Tensor = self.norm(hidden)
        return normed

    @staticmethod
    def _around(layer: Any, name: str, sublayer: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """The sublayer inside the layer's convolution of this name, if it has one."""
        convolution = getattr(layer, name, None)
        return sublayer if convolution is None else partial(convolution.around, sublayer)

    def _attend(
        self,
        index: int,
        block: torch.Tensor,
        context: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        cache: SlotCache | None,
    ) -> torch.Tensor:
        from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

        attention: Any = self.layers[index].self_attn
        heads = (-1, attention.head_dim)
        source = torch.cat([context, block], dim=1)
        query = attention.q_norm(attention.q_proj(source).unflatten(-1, heads)).transpose(1, 2)
        key = attention.k_norm(attention.k_proj(source).unflatten(-1, heads)).transpose(1, 2)
        value = attention.v_proj(source).unflatten(-1, heads).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        if cache is not None:
            key, value = cache.update(key, value, index)
        query = query[:, :, -block.shape[1] :]
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        projected: torch.Tensor = attention.o_proj(attended.transpose(1, 2).flatten(2))
        return projected


class NativeDFlashBody(nn.Module):
    """`DFlashBody`'s interface over the class that transformers drafts with itself (`MuseGlimmerAssistantModel`)."""

    candidate_selector = markov_head = confidence_head = lm_head = vocabulary = None

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

    def forward(
        self, block: torch.Tensor, features: torch.Tensor, positions: torch.Tensor, cache: SlotCache
    ) -> torch.Tensor:
        """See `DFlashBody.forward`."""
        own, end = positions[0, -block.shape[1] :], cache.get_mask_sizes(positions.shape[1], 0)[0]
        visible = seen_by(own, end)[None, None]
        # In both directions; a distance equal to the window is inside.
        near = (torch.arange(end, device=own.device) - own[:, None]).abs() <= self.config.sliding_window
        hidden: torch.Tensor = self.model(
            noise_embeds=block,
            context_hidden_states=features,
            attention_mask={"full_attention": visible, "sliding_attention": visible & near},
            position_ids=positions,
            **{CACHE: cache},
        ).last_hidden_state
        return hidden
