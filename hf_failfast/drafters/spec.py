"""What makes an ordinary causal-LM body a diffusion drafter, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ..config import FailFastConfig

# The drafter that ships with the package, made for SmolLM2-135M-Instruct.
BUNDLED_DRAFTER = Path(__file__).parents[1] / "assets" / "smollm2-135m-drafter"
# What a drafter of our trainer sees of a text unless its section says otherwise: it learned from texts of this length.
OWN_WINDOW = 256
# A window is as long as a draft may be, so that it must hold one.
LEAST_WINDOW = 16
SECTION = "failfast"  # the key of `DrafterSection` in a config.json

AttentionKind = Literal["causal", "causal_canvas", "anchored_canvas", "block_causal", "bidirectional"]
Noise = Literal["mask", "random"]
Alignment = Literal["absolute", "free"]


@dataclass(frozen=True)
class DrafterSpec:
    """How a checkpoint is to be read as a diffusion language model.

    attention: `causal` (every position sees what is before it, masks too; PARD), `causal_canvas` (clean tokens causal,
        masked positions see everything), `anchored_canvas` (the same, and the last clean token sees the masks too, at
        most `block_size` positions with it; SDLM), `block_causal` (bidirectional inside a block of `block_size`,
        causal between blocks; Fast-dLLM v2, SDAR, BD3-LM) or `bidirectional`.
    shift: 1 if the row of position p - 1 predicts the token at p (as in the AR model it came from), 0 if row p does.
    mask_token_id: the id fed at positions to be filled; None only with random noise, whose tokens are those below it.
    noise: what stands at positions to be filled: the mask token or uniformly random tokens (DiffusionGemma).
    alignment: where the block that is drafted begins. `absolute`: at a multiple of the block size, as in training on
        packed text; `free`: right after the last token (models that were trained on left-padded prompts).
    """

    attention: AttentionKind
    shift: int
    mask_token_id: int | None
    block_size: int | None = None
    noise: Noise = "mask"
    alignment: Alignment = "absolute"

    def __post_init__(self) -> None:
        if self.attention not in get_args(AttentionKind):
            raise ValueError(f"`attention` must be one of {list(get_args(AttentionKind))}, but is {self.attention!r}.")
        if self.shift not in (0, 1):
            raise ValueError(f"`shift` must be 0 or 1, but is {self.shift!r}.")
        if self.noise not in get_args(Noise):
            raise ValueError(f"`noise` must be one of {list(get_args(Noise))}, but is {self.noise!r}.")
        if self.noise == "mask" and (self.mask_token_id is None or self.mask_token_id < 0):
            raise ValueError(
                f"`mask_token_id` must be an id >= 0 for a drafter with mask noise, but is {self.mask_token_id!r}; "
                "the checkpoint does not name one, so pass `mask_token_id=`."
            )
        if self.noise == "random" and self.mask_token_id is not None and self.mask_token_id < 1:
            raise ValueError(
                "`mask_token_id` must be >= 1 with random noise, whose tokens are those below it, but is "
                f"{self.mask_token_id!r}."
            )
        if self.attention == "block_causal" and (self.block_size is None or self.block_size < 1):
            raise ValueError(
                f"`block_size` must be an integer >= 1 for block_causal attention, but is {self.block_size!r}."
            )
        if self.attention == "anchored_canvas" and self.block_size is not None and self.block_size + self.shift < 2:
            raise ValueError(
                f"`block_size` must be >= {2 - self.shift} for anchored_canvas attention, but is {self.block_size!r}."
            )
        if self.alignment not in get_args(Alignment):
            raise ValueError(f"`alignment` must be one of {list(get_args(Alignment))}, but is {self.alignment!r}.")
        if self.alignment == "free" and (self.attention != "block_causal" or self.shift != 0):
            raise ValueError("`alignment` can be 'free' only for block_causal attention without shift.")

    def num_noise_ids(self, vocab_size: int) -> int:
        """How many ids, the lowest ones, random noise is drawn from."""
        return vocab_size if self.mask_token_id is None else min(self.mask_token_id, vocab_size)


@dataclass(frozen=True)
class DrafterSection:
    """What our trainer writes into a checkpoint's config.json under `SECTION`: there one flat dict, here by meaning.

    spec: values of `DrafterSpec`; without `attention` they complete the row of the checkpoint's family.
    options: values of `FailFastConfig` that suit the drafter.
    shared_embeddings: embedding and head are the target's (`SharedBody`).
    conditioned: the drafter reads the target's hidden states, those that enter its `source_layers`, and drafts
        `canvas_length` positions a pass.
    input_fusion: a conditioned drafter's rows hold these states in their input too (`StateFusion`).
    drafter_window: the most tokens of a text that the drafter sees, 0 for all; None: `OWN_WINDOW`.
    source_layers: the target's layers that the drafter's layers were copied from.
    target, target_fingerprint: the target it was made for (`MadeFor`).
    """

    spec: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    shared_embeddings: bool = False
    conditioned: bool = False
    input_fusion: bool = False
    canvas_length: int | None = None
    drafter_window: int | None = None
    source_layers: tuple[int, ...] = ()
    target: str | None = None
    target_fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.conditioned and not (self.shared_embeddings and self.canvas_length and self.source_layers):
            raise ValueError("A `conditioned` drafter needs `shared_embeddings`, `canvas_length` and `source_layers`.")
        if self.input_fusion and not self.conditioned:
            raise ValueError("`input_fusion` needs a `conditioned` drafter.")

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> DrafterSection:
        """The section as config.json holds it. Raises ValueError on a key that this version does not know."""
        spec_keys = {each.name for each in fields(DrafterSpec)}
        option_keys = set(FailFastConfig.field_names())
        own = {key: value for key, value in content.items() if key not in spec_keys | option_keys}
        own_keys = {each.name for each in fields(cls)} - {"spec", "options"}
        if unknown := sorted(set(own) - own_keys):
            raise ValueError(
                f"The config's section `{SECTION}` has {unknown}, which this version of hf_failfast does not know; "
                f"it knows {sorted(own_keys | spec_keys | option_keys)}."
            )
        return cls(
            {key: content[key] for key in content if key in spec_keys},
            {key: content[key] for key in content if key in option_keys},
            **own | {"source_layers": tuple(own.get("source_layers", ()))},
        )

    def content(self) -> dict[str, Any]:
        """The section for config.json; what is not set is left out."""
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("spec", "options")}
        own["input_fusion"] = self.input_fusion or None  # older versions know no such key
        values = {**self.spec, **own, **self.options, "source_layers": list(self.source_layers) or None}
        return {key: value for key, value in values.items() if value is not None}
