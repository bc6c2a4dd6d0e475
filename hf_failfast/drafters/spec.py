"""What makes an ordinary causal-LM body a diffusion drafter, as data."""

from dataclasses import dataclass
from typing import Literal, get_args

AttentionKind = Literal["causal_canvas", "block_causal", "bidirectional"]
Noise = Literal["mask", "random"]
Alignment = Literal["absolute", "free"]


@dataclass(frozen=True)
class DrafterSpec:
    """How a checkpoint is to be read as a diffusion language model.

    attention: `causal_canvas` (clean tokens causal, masked positions see everything), `block_causal` (bidirectional
        inside a block of `block_size`, causal between blocks; Fast-dLLM v2, SDAR, BD3-LM) or `bidirectional`.
    shift: 1 if the row of position p - 1 predicts the token at p (as in the AR model it came from), 0 if row p does.
    mask_token_id: the id fed at positions to be filled; None only with random noise.
    noise: what stands at positions to be filled: the mask token or uniformly random tokens (DiffusionGemma).
    alignment: where the block that is drafted begins. `absolute`: at a multiple of the block size, as in training on
        packed text; `free`: right behind the last token (models that were trained on left-padded prompts).
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
        if self.attention == "block_causal" and (self.block_size is None or self.block_size < 1):
            raise ValueError(
                f"`block_size` must be an integer >= 1 for block_causal attention, but is {self.block_size!r}."
            )
        if self.alignment not in get_args(Alignment):
            raise ValueError(f"`alignment` must be one of {list(get_args(Alignment))}, but is {self.alignment!r}.")
        if self.alignment == "free" and (self.attention != "block_causal" or self.shift != 0):
            raise ValueError("`alignment` can be 'free' only for block_causal attention without shift.")
