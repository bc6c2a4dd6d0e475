"""The forward of Llama-like models in 10 launches a layer, where transformers' modules take about 45.

Query, key and value are one matrix product, gate and up another, over merged weights (`merged_weights`); all between
the products is one kernel each (`kernels`). Every result is rounded where the modules round theirs, biases are added
inside the products as theirs are, and the table of rotary embeddings is made by the model's own module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear

from .. import kernels
from ..causal_lm import CausalLM, attention_name, decoder_parts
from ..slot_cache import LayerWindow, layer_windows
from . import llama_like, slot_attention
from .merged_weights import merge
from .static_slots import MAX_WIDTH, CapturedForward


class Product(NamedTuple):
    """The weight and bias of a matrix product."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def of(cls, *projections: nn.Linear) -> Product:
        """The product that gives the projections' results side by side."""
        biases: list[torch.Tensor | None] = [projection.bias for projection in projections]
        given = [bias for bias in biases if bias is not None]
        if len(given) not in (0, len(biases)):
            raise ValueError("only some of the projections of a layer have a bias")
        return cls(merge([projection.weight for projection in projections]), merge(given) if given else None)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(N, rows of the weight) of (N, width)."""
        return linear(states, self.weight, self.bias)


class Norm(NamedTuple):
    """An RMSNorm."""

    weight: torch.Tensor
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> Norm:
        """That of a module."""
        return cls(module.weight.detach(), module.variance_epsilon)


class Layer(NamedTuple):
    """The weights of a decoder layer, in the order in which it uses them."""

    before_attention: Norm
    query_key_value: Product
    head_norms: tuple[torch.Tensor, torch.Tensor] | None  # of queries and keys
    head_epsilon: float
    scale: float  # of the attention's scores
    output: Product
    before_mlp: Norm
    gate_up: Product
    down: Product

    @classmethod
    def of(cls, module: Any) -> Layer:
        """Those of a module, the projections merged."""
        attention, mlp = module.self_attn, module.mlp
        norms = [Norm.of(getattr(attention, name)) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
        return cls(
            Norm.of(module.input_layernorm),
            Product.of(attention.q_proj, attention.k_proj, attention.v_proj),
            (norms[0].weight, norms[1].weight) if norms else None,
            norms[0].epsilon if norms else 0.0,
            attention.scaling,
            Product.of(attention.o_proj),
            Norm.of(module.post_attention_layernorm),
            Product.of(mlp.gate_proj, mlp.up_proj),
            Product.of(mlp.down_proj),
        )


def obstacle(model: CausalLM) -> str | None:
    """Why the model's own layers are captured; None if this decoder can stand in for them."""
    if not kernels.is_fused(model.device):
        return f"there are no Triton kernels on {model.device}"
    if not slot_attention.is_usable(model):
        return f"its attention stays its own: {attention_name(model)!r} in {model.dtype}"
    return llama_like.obstacle(model)


def build(model: CausalLM, num_slots: int) -> FusedDecoder | str:
    """The decoder that stands in for the model's layers, or why there is none."""
    reason = obstacle(model)
    if reason is not None:
        return reason
    try:
        return FusedDecoder(model, num_slots)
    except (ValueError, torch.OutOfMemoryError) as error:
        return str(error)


class FusedDecoder:
    """The forward of one model on static slots, to be captured. Holds every tensor a graph reads besides its inputs.

    Merges the model's weights, and raises ValueError if that cannot be done, see `merge`.
    """

    def __init__(self, model: CausalLM, num_slots: int) -> None:
        parts = decoder_parts(model)
        assert parts is not None  # see `obstacle`
        body: Any = parts.body
        self.dtype, self.device = model.dtype, model.device
        embedding: Any = parts.embedding
        self.embedding: torch.Tensor = embedding.weight.detach()
        self.mask_token_id = parts.mask_token_id
        self.mask_embedding = None if parts.mask_embedding is None else parts.mask_embedding.detach()
        self.layers = [Layer.of(layer) for layer in llama_like.layers(parts)]
        self.last_norm = Norm.of(body.norm)
        self.head = parts.head
        positions = torch.arange(num_slots, device=self.device)[None]
        states = torch.empty(1, num_slots, 0, dtype=self.dtype, device=self.device)
        self.cosines, self.sines = (table[0].contiguous() for table in body.rotary_emb(states, positions))
        windows = layer_windows(body.config)
        self.kinds = list(dict.fromkeys(windows))
        self.kind_of = [self.kinds.index(window) for window in windows]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what the merging has freed is in pieces too small for it to have used again
        self.reach = torch.stack([self._reach(kind, num_slots) for kind in self.kinds] + [self._reach(None, 0) + 1])

    def _reach(self, window: LayerWindow | None, num_slots: int) -> torch.Tensor:
        """What to add to a window's start for the first slots that its tokens see, (1, MAX_WIDTH)."""
        offsets = torch.arange(MAX_WIDTH, device=self.device)[None]
        return offsets - num_slots if window is None else window.first(offsets)

    def forward(
        self, inputs: CapturedForward, slots: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits (B, r, V) of the tokens to read and the hidden states asked for, (B, q, width of all), or None.

        slots: keys and values (B, heads, slots, head_dim) of every layer; those of the window are written.
        """
        shape, (num_rows, width) = inputs.shape, inputs.input_ids.shape
        *firsts, causal_limit = (inputs.starts + self.reach[:, :, :width]).unbind()  # (B, q) each
        limit = inputs.limit if shape.is_limited else causal_limit
        states = States(shape.hidden_layers, len(self.layers), num_rows * width, self.last_norm.weight)
        residual, delta = states.place(0), None
        ids = inputs.input_ids.flatten()
        kernels.embed(ids, self.embedding, self.mask_token_id, self.mask_embedding, residual)
        for index, layer in enumerate(self.layers):
            keys, values = slots[index]
            residual, normed = states.add_norm(residual, delta, layer.before_attention, states.place(index))
            query = kernels.rotate_and_store(
                layer.query_key_value(normed),
                self.cosines,
                self.sines,
                inputs.starts,
                keys,
                values,
                layer.head_norms,
                layer.head_epsilon,
            )
            keys, values = keys[:, :, : shape.num_slots], values[:, :, : shape.num_slots]
            first = firsts[self.kind_of[index]]
            attended = kernels.attention(query.transpose(1, 2), keys, values, limit, first, layer.scale)
            delta = layer.output(attended.transpose(1, 2).reshape(len(ids), -1))
            residual, normed = states.add_norm(residual, delta, layer.before_mlp, states.scratch)
            delta = layer.down(kernels.swiglu(layer.gate_up(normed)))
        _, normed = states.add_norm(residual, delta, self.last_norm, states.scratch, states.last)
        read = normed.unflatten(0, (num_rows, width)).index_select(1, inputs.read)
        return self.head(read), states.asked(num_rows)


class States:
    """Where a forward writes the hidden states of its N tokens: those asked for, side by side, and the others."""

    def __init__(self, asked: tuple[int, ...], num_layers: int, num_tokens: int, like: torch.Tensor) -> None:
        self.width = len(like)
        self.indices = [index % (num_layers + 1) for index in asked]
        self.kept = like.new_empty(num_tokens, self.width * len(asked)) if asked else None
        self.scratch = like.new_empty(num_tokens, self.width)
        self.normed = torch.empty_like(self.scratch)
        self.last = self.place(num_layers) if num_layers in self.indices else self.normed  # that of the last norm

    def place(self, index: int) -> torch.Tensor:
        """(N, width) for the model's hidden state of this index."""
        if self.kept is None or index not in self.indices:
            return self.scratch
        return self._column(self.indices.index(index))

    def _column(self, place: int) -> torch.Tensor:
        assert self.kept is not None
        return self.kept[:, place * self.width : (place + 1) * self.width]

    def add_norm(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        norm: Norm,
        summed: torch.Tensor,
        normed: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum, which the next layer continues with, and its norm, both (N, width)."""
        normed = self.normed if normed is None else normed
        kernels.add_norm(residual, delta, norm.weight, norm.epsilon, summed, normed)
        return residual if delta is None else summed, normed

    def asked(self, num_rows: int) -> torch.Tensor | None:
        """The hidden states asked for, (B, q, width of all)."""
        if self.kept is None:
            return None
        for place, index in enumerate(self.indices):
            if self.indices.index(index) != place:
                self._column(place).copy_(self.place(index))
        return self.kept.unflatten(0, (num_rows, -1))
