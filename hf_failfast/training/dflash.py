"""DFlash in training (arXiv 2602.06036): blocks of the last token and masks that read the target's states before them.

The body is the one that drafts (`DFlashBody`). Unlike the other drafters it has Qwen3's layers whatever the target's,
its masks are a token of the target's vocabulary, and a mask's row predicts the mask's own position.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import embedding
from transformers import PreTrainedConfig, PreTrainedModel, Qwen3Config

from ..drafters.bodies.dflash import DFlashBody, layer_sights
from ..drafters.conditioned.dflash import usual_layers
from .canvases import Canvases
from .model import TrainedDrafter, narrowed_mlp

FUSED_STATES = 5
# The projection's output is normalised: the larger it begins, the slower the optimizer turns it.
FUSION_SCALE = 4.0


class BlockDrafter(TrainedDrafter):
    """A DFlash body, which is all that is trained, between the target's embedding and head."""

    def __init__(
        self,
        target: PreTrainedModel,
        layers: Sequence[int],
        mask_token_id: int,
        draft_vocabulary: torch.Tensor | None = None,
        intermediate_size: int | None = None,
    ) -> None:
        """Layers that begin as the target's `layers` where these have the same parts; `intermediate_size` keeps the
        strongest neurons of every MLP. mask_token_id: the id whose embedding stands at positions to draft."""
        super().__init__(target, layers, draft_vocabulary)
        check_norms(target)
        self.mask_token_id = mask_token_id
        self.target_class = type(target).__name__
        self.num_target_layers = len(cast(Any, target.get_decoder()).layers)
        self.target_layer_ids = fused_layers(self.num_target_layers)
        config = block_config(target.config.get_text_config(decoder=True), len(layers), intermediate_size)
        self.body = DFlashBody(config, len(self.target_layer_ids) * config.hidden_size, layer_sights(config, {}))
        _copy_target(self.body, target, layers)
        self.embedding = target.get_input_embeddings().requires_grad_(False)

    @property
    def target_states(self) -> tuple[int, ...]:
        """The target's `hidden_states` that the body reads: outputs of layers, and number 0 is the embedding."""
        return tuple(layer + 1 for layer in self.target_layer_ids)

    def forward(self, canvases: Canvases, features: torch.Tensor) -> tuple[None, torch.Tensor]:
        """No clean rows, and the normalised outputs of the masks [batch, A, K, hidden].

        features [batch, T, states, hidden]: the target's `target_states` of every token.
        """
        batch, count = canvases.anchors.shape
        length = canvases.canvas_length + 1
        last = canvases.tokens.gather(1, canvases.anchors)
        ids = (
            last[..., None]
            .expand(-1, -1, length)
            .masked_fill(torch.arange(length, device=last.device) > 0, self.mask_token_id)
        )
        rows = embedding(ids.flatten(1), self.embedding.weight).float()
        places = canvases.anchors[..., None] + torch.arange(length, device=last.device)
        context = torch.arange(canvases.tokens.shape[1], device=last.device).expand(batch, -1)
        positions = torch.cat([context, places.flatten(1)], dim=1)
        mask = block_mask(canvases, length)
        hidden = self.body.read(rows, features.flatten(2).float(), positions, [mask] * len(self.body.sights))
        return None, hidden.unflatten(1, (count, length))[:, :, 1:]

    def weights(self) -> dict[str, nn.Parameter]:
        return dict(self.body.named_parameters())

    def stored_state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds; of a reduced vocabulary its head and both maps, as vLLM's speculators have them."""
        stored = self.stored_weights()
        if self.draft_vocabulary is not None:
            ids = self.draft_vocabulary.cpu()
            stored |= {
                "d2t": ids - torch.arange(len(ids)),
                "t2d": torch.zeros(self.body.config.vocab_size, dtype=torch.bool).index_fill(0, ids, True),
                "lm_head.weight": self.head.to("cpu", torch.bfloat16).contiguous(),
            }
        return stored


def stored_vocabulary(tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """The target's ids that a stored drafter of any form can propose; None: all."""
    if "d2t" in tensors:
        return tensors["d2t"] + torch.arange(len(tensors["d2t"]))
    return tensors.get("draft_vocabulary")


def block_mask(canvases: Canvases, length: int) -> torch.Tensor:
    """bool [batch, 1, A * length, T + A * length], True where a row of a block sees a token's states or a row: the
    tokens before its anchor, whose own states do not exist yet, and its own block."""
    batch, count = canvases.anchors.shape
    device = canvases.anchors.device
    columns = torch.arange(canvases.tokens.shape[1], device=device)
    before = columns < canvases.anchors.repeat_interleave(length, dim=1)[..., None]
    block = torch.arange(count, device=device).repeat_interleave(length)
    own = (block[:, None] == block).expand(batch, -1, -1)
    return torch.cat([before, own], dim=2)[:, None]


def fused_layers(total: int) -> tuple[int, ...]:
    """The target's layers whose outputs are fused: those that the authors choose; of a shallow target fewer."""
    last = max(total - 2, 0)  # the output of the last layer is normalised for the head
    return tuple(sorted({min(max(layer, 0), last) for layer in usual_layers(total, FUSED_STATES)}))


def rarest_token(texts: Sequence[torch.Tensor], vocabulary: int, never: Sequence[int]) -> int:
    """The id of a vocabulary that the texts hold least, the highest of equals; none of `never`.

    Tokenizers rarely have a mask token, and embeddings are often padded with rows of no token: a mask should be an id
    that no text holds, since it is never drafted.
    """
    counts = torch.bincount(torch.cat(list(texts)), minlength=vocabulary)[:vocabulary]
    counts[list(never)] = counts.max() + 1
    return int((counts == counts.min()).nonzero()[-1])


def check_norms(target: PreTrainedModel) -> None:
    """Raises ValueError unless the target normalises as DFlash's layers do: by the root mean square, before its
    attention and before its head."""
    source = cast(Any, target.get_decoder())
    norms = [getattr(source.layers[0], "input_layernorm", None), source.norm]
    if not all("RMSNorm" in type(norm).__name__ for norm in norms):
        names = sorted({type(norm).__name__ for norm in norms if norm is not None})
        raise ValueError(
            f"`form` 'dflash' needs a target with RMS norms before attention and head, got {type(target).__name__} "
            f"with {names}."
        )


def block_config(config: PreTrainedConfig, num_layers: int, intermediate_size: int | None) -> Qwen3Config:
    """Qwen3's config of the target's sizes. Its activation is SiLU, the only one that servers have for such layers."""
    heads = config.num_attention_heads
    return Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=intermediate_size or config.intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": _rope_theta(config)},
        tie_word_embeddings=False,
    )


def _rope_theta(config: PreTrainedConfig) -> float:
    """The base of the target's rotary embeddings: of its full attention where layers differ."""
    parameters = config.rope_parameters
    return float(parameters.get("full_attention", parameters)["rope_theta"])


@torch.no_grad()
def _copy_target(body: DFlashBody, target: PreTrainedModel, layers: Sequence[int]) -> None:
    """The target's weights wherever a layer has a part of the same name and shape; the projection begins with the
    last of the fused states, so that keys and values of the context begin near to the target's own."""
    source = cast(Any, target.get_decoder())
    width = body.config.hidden_size
    scales = []
    for new, old in zip(cast("list[Any]", body.layers), layers, strict=True):
        weights = source.layers[old].state_dict()
        if body.config.intermediate_size != source.config.intermediate_size:
            weights = narrowed_mlp(weights, body.config.intermediate_size)
        own = new.state_dict()
        fits = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
        new.load_state_dict(own | fits | _norms(new, source.layers[old], fits))
        scales.append(new.input_layernorm.weight)
    body.norm.weight.copy_(_scale(source.norm))
    body.hidden_norm.weight.copy_(torch.stack(scales).mean(dim=0))
    body.fc.weight.zero_()
    body.fc.weight[:, -width:] = FUSION_SCALE * torch.eye(width)


def _norms(new: Any, old: Any, fits: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a layer's norms. Queries and keys that the target does not normalise become as large as its own are
    for inputs of independent entries."""
    before_mlp = getattr(old, "pre_feedforward_layernorm", None) or old.post_attention_layernorm
    found = {
        "input_layernorm.weight": _scale(old.input_layernorm),
        "post_attention_layernorm.weight": _scale(before_mlp),
    }
    for name in ("q", "k"):
        norm, projection = f"self_attn.{name}_norm.weight", fits.get(f"self_attn.{name}_proj.weight")
        if norm in fits:
            found[norm] = _scale(getattr(old.self_attn, f"{name}_norm"))
        elif projection is not None:
            made = projection.float() * found["input_layernorm.weight"]
            found[norm] = (made.norm() / len(made) ** 0.5).expand(new.self_attn.head_dim)
    return found


def _scale(norm: Any) -> torch.Tensor:
    """What an RMS norm multiplies by, whatever its family stores: Gemma's store it less one."""
    width = norm.weight
    return norm(torch.ones_like(width)).float()
