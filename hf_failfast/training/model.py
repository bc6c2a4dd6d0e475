"""The causal-canvas drafter: chosen layers of the target, its frozen embedding and head, one learned mask embedding.

Token shift 1, as in the AR model the layers come from: the row at position p predicts the token at p + 1. A canvas of
length K anchored at clean position t therefore has K - 1 mask rows, at positions t + 1 .. t + K - 1; the clean row t
predicts draft position 1 and the mask rows predict draft positions 2 .. K.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Canvases:
    """What one packed batch reads: tokens [batch, T] right-padded, anchors [batch, A] clean positions in [0, T)."""

    tokens: torch.Tensor
    anchors: torch.Tensor
    canvas_length: int

    @property
    def mask_rows(self) -> int:
        return self.canvas_length - 1

    def position_ids(self) -> torch.Tensor:
        """[batch, T + A * (K - 1)]: a mask row has the position of the token that it stands for."""
        batch, clean = self.tokens.shape
        device = self.tokens.device
        offsets = torch.arange(1, self.canvas_length, device=device)
        masks = (self.anchors[:, :, None] + offsets).flatten(1)
        return torch.cat([torch.arange(clean, device=device).expand(batch, -1), masks], dim=1)

    def attention_mask(self) -> torch.Tensor:
        """bool [batch, 1, L, L], True where row sees column; L = T + A * (K - 1).

        Clean rows are causal. The rows of a canvas see the clean positions up to their anchor and their own canvas.
        """
        batch, clean = self.tokens.shape
        count = self.anchors.shape[1]
        device = self.tokens.device
        columns = torch.arange(clean, device=device)
        anchors = self.anchors.repeat_interleave(self.mask_rows, dim=1)  # [batch, A * (K - 1)]
        last_clean = torch.cat([columns.expand(batch, -1), anchors], dim=1)  # [batch, L]
        sees_clean = columns <= last_clean[:, :, None]
        # Clean rows belong to canvas -1 and look at no canvas at all.
        of_canvas = torch.arange(count, device=device).repeat_interleave(self.mask_rows)
        of_row = torch.cat([torch.full((clean,), -1, device=device), of_canvas])
        sees_canvas = (of_row[:, None] == of_canvas).expand(batch, -1, -1)
        return torch.cat([sees_clean, sees_canvas], dim=2)[:, None]


class CanvasDrafter(nn.Module):
    """Trainable body and mask embedding; `embedding` and `head` [draft vocabulary, hidden] stay the target's."""

    head: torch.Tensor

    def __init__(
        self, target: PreTrainedModel, layers: Sequence[int], draft_vocabulary: torch.Tensor | None = None
    ) -> None:
        """float32 copies of the target's `layers` and final norm; `draft_vocabulary` [Vd] picks rows of the head."""
        super().__init__()
        _check_target(target, layers)
        source = target.base_model
        self.source_layers = tuple(layers)
        self.draft_vocabulary = draft_vocabulary
        config = drafter_config(target.config, layers)
        config.architectures = [type(target).__name__]
        self.body = AutoModel.from_config(config, dtype=torch.float32)
        for new, old in enumerate(layers):
            self.body.layers[new].load_state_dict(source.layers[old].state_dict())
        self.body.norm.load_state_dict(source.norm.state_dict())
        embedding = target.get_input_embeddings().requires_grad_(False)
        self.body.set_input_embeddings(embedding)
        # Some families scale their embeddings (Gemma); the mask embedding is added after that.
        scale = getattr(embedding, "embed_scale", 1.0)
        self.mask_embedding = nn.Parameter(embedding.weight.float().mean(dim=0) * scale)
        head = target.get_output_embeddings().weight.detach()
        if draft_vocabulary is not None:
            head = head[draft_vocabulary.to(head.device)]
        self.register_buffer("head", head, persistent=False)

    def forward(self, canvases: Canvases) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised outputs: clean rows [batch, T, hidden] and mask rows [batch, A, K - 1, hidden]."""
        batch, clean = canvases.tokens.shape
        embedded = self.body.get_input_embeddings()(canvases.tokens).float()
        masks = self.mask_embedding.expand(batch, canvases.anchors.shape[1] * canvases.mask_rows, -1)
        visible = canvases.attention_mask()
        if self.body.config._attn_implementation == "eager":  # adds its mask to the scores
            lowest = torch.finfo(embedded.dtype).min
            visible = torch.zeros_like(visible, dtype=embedded.dtype).masked_fill(~visible, lowest)
        hidden = self.body(
            inputs_embeds=torch.cat([embedded, masks], dim=1),
            position_ids=canvases.position_ids(),
            attention_mask=visible,  # 4-D: transformers hands it to every layer as it is
            use_cache=False,
        ).last_hidden_state
        return hidden[:, :clean], hidden[:, clean:].unflatten(1, (-1, canvases.mask_rows))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., draft vocabulary], in the target's own dtype."""
        return nn.functional.linear(hidden.to(self.head.dtype), self.head)

    def stored_state(self) -> dict[str, torch.Tensor]:
        """What a drafter checkpoint holds, weights in bfloat16; nothing the target already has."""
        body = {f"model.{name}": p for name, p in self.body.named_parameters() if p.requires_grad}
        state = {**body, "mask_embedding": self.mask_embedding}
        stored = {name: p.detach().to("cpu", torch.bfloat16).contiguous() for name, p in state.items()}
        if self.draft_vocabulary is not None:
            stored["draft_vocabulary"] = self.draft_vocabulary.to("cpu", torch.int32)
        return stored


def _check_target(target: PreTrainedModel, layers: Sequence[int]) -> None:
    source, name = target.base_model, type(target).__name__
    if not isinstance(getattr(source, "layers", None), nn.ModuleList) or not hasattr(source, "norm"):
        raise ValueError(f"`target` must be a decoder with `model.layers` and `model.norm`, got {name}.")
    output = target.get_output_embeddings()
    if output is None or getattr(output, "bias", None) is not None:
        raise ValueError(f"`target` must have an output head without bias, got {name}.")
    last = len(source.layers) - 1
    if not layers or not all(0 <= layer <= last for layer in layers):
        raise ValueError(f"`layers` must be between 0 and {last}, got {list(layers)}.")


def drafter_config(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """The target's own config cut down to `layers`."""
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = len(layers)
    if getattr(cut, "layer_types", None):
        cut.layer_types = [config.layer_types[layer] for layer in layers]
    if cut._attn_implementation != "eager":
        cut._attn_implementation = "sdpa"  # of the fused kinds only this one takes any mask
    return cut


def frequent_tokens(answers: Sequence[torch.Tensor], size: int, always: Sequence[int]) -> torch.Tensor:
    """int64 [size], ascending: `always` and the most frequent ids of `answers`; ties go to the lower id.

    Ids that no answer holds fill up what is left, the lowest first: BPE gives frequent tokens low ids.
    """
    ids, counts = torch.cat(list(answers)).unique(return_counts=True)
    frequent = ids[counts.argsort(descending=True, stable=True)].tolist()
    chosen = dict.fromkeys([*always, *frequent, *range(size)])
    return torch.tensor(sorted(list(chosen)[:size]))
