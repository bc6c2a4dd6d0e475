"""The drafter in training: chosen layers of the target, its frozen embedding and head, one learned mask embedding."""

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ..drafters.bodies.fusion import StateFusion
from ..drafters.conditioned.canvas import HiddenStateInjection
from ..engine.runner import EagerRunner
from .canvases import Canvases

# What a checkpoint holds beside weights that were trained: the ids that can be drafted, and the head's rows.
UNTRAINED = ("draft_vocabulary", "d2t", "t2d", "lm_head.weight")


class TrainedDrafter(nn.Module):
    """Layers that begin as some of the target's, before its frozen `head` [draft vocabulary, hidden]."""

    head: torch.Tensor

    def __init__(self, target: PreTrainedModel, layers: Sequence[int], draft_vocabulary: torch.Tensor | None) -> None:
        """layers: where the drafter's own come from. draft_vocabulary [Vd] picks rows of the head; None: all."""
        super().__init__()
        check_target(target, layers)
        self.source_layers = tuple(layers)
        self.draft_vocabulary = draft_vocabulary
        head = target.get_output_embeddings().weight.detach()
        if draft_vocabulary is not None:
            head = head[draft_vocabulary.to(head.device)]
        self.register_buffer("head", head, persistent=False)

    @abstractmethod
    def weights(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in a checkpoint."""

    @abstractmethod
    def stored_state(self) -> dict[str, torch.Tensor]:
        """What a drafter checkpoint holds."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., draft vocabulary], in the target's own dtype."""
        return nn.functional.linear(hidden.to(self.head.dtype), self.head)

    def stored_weights(self) -> dict[str, torch.Tensor]:
        """`weights` in bfloat16 on the CPU."""
        return {name: p.detach().to("cpu", torch.bfloat16).contiguous() for name, p in self.weights().items()}

    def load_stored_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes over the weights of a checkpoint. Raises ValueError where they do not fit."""
        weights = {name: value for name, value in state.items() if name not in UNTRAINED}
        own = self.weights()
        misfits = sorted(
            name
            for name in own.keys() | weights.keys()
            if name not in own or name not in weights or own[name].shape != weights[name].shape
        )
        if misfits:
            raise ValueError(f"`initial` must be a drafter of the same layers, but differs in {misfits[:4]}.")
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)


class CanvasDrafter(TrainedDrafter):
    """Trainable body and mask embedding; the embedding stays the target's, too."""

    def __init__(
        self,
        target: PreTrainedModel,
        layers: Sequence[int],
        draft_vocabulary: torch.Tensor | None = None,
        intermediate_size: int | None = None,
        input_fusion: bool = False,
    ) -> None:
        """float32 copies of the target's `layers` and final norm; `intermediate_size` keeps the strongest neurons of
        every MLP. input_fusion: of a conditioned drafter, see `StateFusion`."""
        super().__init__(target, layers, draft_vocabulary)
        check_inputs(target)
        source = target.get_decoder()
        config = drafter_config(target.config.get_text_config(decoder=True), layers, intermediate_size)
        if type(config) is type(target.config):  # else it is the text part of a target that sees images, too
            config.architectures = [type(target).__name__]
        self.body = AutoModel.from_config(config, dtype=torch.float32)
        for new, old in enumerate(layers):
            weights = source.layers[old].state_dict()
            if intermediate_size is not None:
                weights = narrowed_mlp(weights, intermediate_size)
            self.body.layers[new].load_state_dict(weights)
        self.body.norm.load_state_dict(source.norm.state_dict())
        self._runner = EagerRunner(self.body)  # knows how far back each layer sees
        self.injection = HiddenStateInjection(self.body)
        self.fusion = StateFusion(len(layers), config.hidden_size) if input_fusion else None
        embedding = target.get_input_embeddings().requires_grad_(False)
        self.body.set_input_embeddings(embedding)
        # Some families scale their embeddings (Gemma); the mask embedding is added after that.
        scale = getattr(embedding, "embed_scale", 1.0)
        self.mask_embedding = nn.Parameter(embedding.weight.float().mean(dim=0) * scale)

    def forward(self, canvases: Canvases, features: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised outputs: clean rows [batch, T, hidden] and canvas rows [batch, A, rows, hidden].

        features [batch, T, layers, hidden]: the target's hidden states that enter its `source_layers`, of a
            conditioned drafter, which reads these in place of its own states of the clean positions.
        """
        clean = canvases.tokens.shape[1]
        embedded = self.body.get_input_embeddings()(canvases.tokens).float()
        rows = torch.cat([embedded, self._canvas_rows(canvases).flatten(1, 2)], dim=1)
        positions = canvases.position_ids()
        if features is None:
            visible = canvases.attention_mask()
        else:
            visible = canvases.conditioned_attention_mask()
            rows = torch.cat([embedded, rows], dim=1)  # the first T rows are replaced in every layer
            positions = torch.cat([positions[:, :clean], positions], dim=1)
        with self.injection.of(features, self._added(canvases, features)):
            hidden = self.body(
                inputs_embeds=rows,
                position_ids=positions,
                attention_mask=self._runner.mask_of(visible[:, 0], positions),
                use_cache=False,
            ).last_hidden_state
        hidden = hidden[:, rows.shape[1] - canvases.position_ids().shape[1] :]
        return hidden[:, :clean], hidden[:, clean:].unflatten(1, (canvases.anchors.shape[1], canvases.rows_per_canvas))

    def _added(self, canvases: Canvases, features: torch.Tensor | None) -> torch.Tensor | None:
        """[batch, L, hidden]: of a clean row from the position before it, of a canvas from that before its anchor."""
        if self.fusion is None or features is None:
            return None
        before = nn.functional.pad(self.fusion.prepared(features)[:, :-1], (0, 0, 1, 0))
        of_anchor = before.gather(1, canvases.anchors[..., None].expand(-1, -1, before.shape[-1]))
        rows = self.fusion.canvas(of_anchor).repeat_interleave(canvases.rows_per_canvas, dim=1)
        return torch.cat([self.fusion.token(before), rows], dim=1)

    def _canvas_rows(self, canvases: Canvases) -> torch.Tensor:
        """[batch, A, rows, hidden]"""
        batch, anchors = canvases.anchors.shape
        masks = self.mask_embedding.expand(batch, anchors, canvases.rows_per_canvas, -1)
        if canvases.revealed is None:
            return masks
        tokens = self.body.get_input_embeddings()(canvases.canvas_tokens()).float()
        return torch.where(canvases.revealed[..., None], tokens, masks)

    def weights(self) -> dict[str, nn.Parameter]:
        """Nothing that the target already has."""
        body = {f"model.{name}": p for name, p in self.body.named_parameters() if p.requires_grad}
        fusion = {} if self.fusion is None else {f"fusion.{name}": p for name, p in self.fusion.named_parameters()}
        return {**body, **fusion, "mask_embedding": self.mask_embedding}

    def stored_state(self) -> dict[str, torch.Tensor]:
        """What a drafter checkpoint holds."""
        stored = self.stored_weights()
        if self.draft_vocabulary is not None:
            stored["draft_vocabulary"] = self.draft_vocabulary.to("cpu", torch.int32)
        return stored


def check_target(target: PreTrainedModel, layers: Sequence[int]) -> None:
    """Raises ValueError where a drafter cannot be made of these layers of the target."""
    source, name = target.get_decoder(), type(target).__name__
    if not isinstance(getattr(source, "layers", None), nn.ModuleList) or not hasattr(source, "norm"):
        raise ValueError(f"`target` must be a decoder with `model.layers` and `model.norm`, got {name}.")
    others = {type(layer).__name__ for layer in source.layers if not hasattr(layer, "self_attn")}
    if others:
        raise ValueError(f"`target` must have attention in every layer, got {name} with {sorted(others)}.")
    output = target.get_output_embeddings()
    if output is None or getattr(output, "bias", None) is not None:
        raise ValueError(f"`target` must have an output head without bias, got {name}.")
    last = len(source.layers) - 1
    if not layers or not all(0 <= layer <= last for layer in layers):
        raise ValueError(f"`layers` must be between 0 and {last}, got {list(layers)}.")


def check_inputs(target: PreTrainedModel) -> None:
    """Raises ValueError where the target's layers read more than what the layer before them wrote: a copy of some of
    them would lack it."""
    config = target.config.get_text_config(decoder=True)
    for key in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if value := getattr(config, key, None):
            raise ValueError(
                f"`target` must have layers that read only what the layer before them wrote, got "
                f"{type(target).__name__} with `{key}` {value}."
            )


def default_layers(total: int, conditioned: bool = False) -> tuple[int, ...]:
    """The first three and the last: this starts better than evenly spaced layers. Of a conditioned drafter the last
    four: what it is to read of the past are late states."""
    if conditioned:
        return tuple(range(max(total - 4, 0), total))
    return tuple(sorted({*range(min(3, total)), total - 1}))


def drafter_config(
    config: PreTrainedConfig, layers: Sequence[int], intermediate_size: int | None = None
) -> PreTrainedConfig:
    """The target's own config cut down to `layers` and to `intermediate_size` neurons an MLP."""
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = len(layers)
    if getattr(cut, "layer_types", None):
        cut.layer_types = [config.layer_types[layer] for layer in layers]
    if intermediate_size is not None:
        if not 1 <= intermediate_size <= config.intermediate_size:
            raise ValueError(
                f"`intermediate_size` must be between 1 and {config.intermediate_size}, got {intermediate_size}."
            )
        cut.intermediate_size = intermediate_size
    if cut._attn_implementation != "eager":
        cut._attn_implementation = "sdpa"  # of the fused kinds only this one takes any mask
    return cut


def narrowed_mlp(weights: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    """A layer's weights with the `size` MLP neurons whose input and output weights are largest, in their order."""
    up, down = weights["mlp.up_proj.weight"].float(), weights["mlp.down_proj.weight"].float()
    kept = (up.norm(dim=1) * down.norm(dim=0)).topk(size).indices.sort().values
    narrow = {f"mlp.{name}.weight": weights[f"mlp.{name}.weight"][kept] for name in ("gate_proj", "up_proj")}
    return weights | narrow | {"mlp.down_proj.weight": weights["mlp.down_proj.weight"][:, kept]}


def covering_size(answers: Sequence[torch.Tensor], coverage: float, always: Sequence[int]) -> int:
    """How many of the most frequent ids hold the share `coverage` of the answers' tokens, `always` among them."""
    ids, counts = torch.cat(list(answers)).unique(return_counts=True)
    counts = counts[counts.argsort(descending=True, stable=True)]
    wanted = coverage * counts.sum()
    return max(int((counts.cumsum(dim=0) < wanted).sum()) + 1, 1) + len(set(always) - set(ids.tolist()))


def covered_share(answers: Sequence[torch.Tensor], draft_vocabulary: torch.Tensor) -> float:
    """The share of the answers' tokens that can be drafted."""
    return float(torch.isin(torch.cat(list(answers)), draft_vocabulary).double().mean())


def frequent_tokens(answers: Sequence[torch.Tensor], size: int, always: Sequence[int]) -> torch.Tensor:
    """int64 [size], ascending: `always` and the most frequent ids of `answers`; ties go to the lower id.

    Ids that no answer holds fill up what is left, the lowest first: BPE gives frequent tokens low ids.
    """
    ids, counts = torch.cat(list(answers)).unique(return_counts=True)
    frequent = ids[counts.argsort(descending=True, stable=True)].tolist()
    chosen = dict.fromkeys([*always, *frequent, *range(size)])
    return torch.tensor(sorted(list(chosen)[:size]))
