"""What a model makes of positions: tables, rotary embeddings that change, and places that it counts itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedConfig

# Their forward starts the cache anew when the text outgrows the original length.
_READS_AGAIN = ("phi3", "phi4_multimodal", "phimoe")

# Their forward takes no positions: it counts on from the slots that the cache shows.
_COUNTING = frozenset(
    {
        "bart",
        "bigbird_pegasus",
        "blenderbot",
        "blenderbot-small",
        "bloom",
        "cpmant",
        "marian",
        "mbart",
        "mpt",
        "musicgen",
        "musicgen_melody",
        "mvp",
        "pegasus",
        "plbart",
        "prophetnet",
        "roformer",
        "trocr",
        "whisper",
        "xlnet",
    }
)

# What those make of what they count: distances between tokens; or, from the mask, places without the hidden tokens.
GOES_BY_DISTANCES = ("gpt_neo", "mpt", "roformer")
LEAVES_OUT_HIDDEN = ("bloom",)

# Without rotary embeddings and without a table: distances in place of positions, or sines that the forward computes as
# the text grows.
_UNBOUNDED = ("bloom", "mpt")
_GROWING = ("kosmos_2_text_model", "xglm")


class RopeChange(NamedTuple):
    """Rotary embeddings that depend on how long the text is at the time of the forward.

    A forward takes one set of frequencies for all of its tokens: texts of up to `length` tokens and longer ones must
    not share one.
    """

    length: int
    kind: str  # `longrope`: one other set beyond the length; `dynamic`: another one for every token beyond it
    reads_again: bool  # the whole text is read again with the other set


def num_positions(config: PreTrainedConfig) -> int:
    """The positions the model was made for; unlimited where its config names none."""
    return getattr(config, "max_position_embeddings", None) or sys.maxsize


def position_table(config: PreTrainedConfig) -> int | None:
    """How many positions the model has an embedding of; None where it computes them for any position."""
    is_computed = getattr(config, "rope_parameters", None) is not None or config.model_type in _UNBOUNDED
    return None if is_computed or table_grows(config) else getattr(config, "max_position_embeddings", None)


def table_grows(config: PreTrainedConfig) -> bool:
    """Whether the forward replaces its table of positions by a longer one when a text outgrows it."""
    return config.model_type in _GROWING


def rope_change(config: PreTrainedConfig) -> RopeChange | None:
    """Where the model's rotary embeddings change; None if they do not."""
    for parameters in _rope_parameters(config):
        kind = str(parameters.get("rope_type", "default"))
        if "dynamic" in kind:
            return RopeChange(num_positions(config) - 1, "dynamic", False)  # forgets a longer text before this length
        if kind == "longrope":
            length = parameters["original_max_position_embeddings"]
            reads_again = config.model_type in _READS_AGAIN and hasattr(config, "original_max_position_embeddings")
            return RopeChange(int(length), "longrope", reads_again)
    return None


def _rope_parameters(config: PreTrainedConfig) -> Iterator[Mapping[str, Any]]:
    """One set, or one per layer type."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_type = [value for value in parameters.values() if isinstance(value, Mapping)]
    yield from by_type or [parameters]


def counted_from(config: PreTrainedConfig) -> int | None:
    """From how many slots on a forward's result depends on how many the cache shows: the model takes its tokens for
    the last ones of those. None: it goes by the positions it is given.

    Decoders of BART's kind take no positions at all. Llama 4's layers without rotary embeddings scale their queries by
    that count, in steps of `floor_scale`; GPT-Neo's local layers lay their window by it.
    """
    if config.model_type == "gpt_neo" or config.model_type in _COUNTING:
        return 0
    if getattr(config, "attn_temperature_tuning", False) and not all(getattr(config, "no_rope_layers", None) or [1]):
        return int(config.floor_scale)
    return None
