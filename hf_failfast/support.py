"""What the loop cannot do yet, refused by name instead of dropped in silence."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache, DynamicCache, GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What `generate` itself puts there; the loop derives positions, mask and cache from the tokens.
DERIVED_MODEL_KWARGS = frozenset(
    {"attention_mask", "position_ids", "cache_position", "past_key_values", "use_cache", "logits_to_keep"}
)

# Arguments of `generate` that replace what the loop derives.
UNSUPPORTED_ARGUMENTS = (
    "cache_position",
    "inputs_embeds",
    "logits_to_keep",
    "position_ids",
)


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raises ValueError on arguments of `generate` that drafting cannot honour."""
    for name in UNSUPPORTED_ARGUMENTS:
        if arguments.get(name) is not None:
            raise ValueError(f"`{name}` is not supported by hf_failfast yet.")


def check_request(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    synced_gpus: bool,
) -> None:
    """Raises ValueError naming the first part of a prepared request that the loop does not support."""
    config = generation_config
    positions = num_positions(model)
    refusals = {
        "encoder-decoder targets": model.config.is_encoder_decoder,
        f"`num_beams`={config.num_beams}": (config.num_beams or 1) > 1,
        f"`num_return_sequences`={config.num_return_sequences}": (config.num_return_sequences or 1) > 1,
        f"a batch of {input_ids.shape[0]} prompts (one at a time, please)": input_ids.shape[0] != 1,
        "`use_cache=False`": config.use_cache is False,
        f"`cache_implementation`={config.cache_implementation!r}": config.cache_implementation is not None,
        "`output_attentions`": config.return_dict_in_generate and config.output_attentions,
        "`output_hidden_states`": config.return_dict_in_generate and config.output_hidden_states,
        "`synced_gpus`": synced_gpus,
        "an empty prompt": input_ids.shape[-1] == 0,
        f"a prompt of {input_ids.shape[-1]} tokens for a target with `max_position_embeddings`={positions}": (
            input_ids.shape[-1] > positions
        ),
    }
    refusals |= _cache_refusals(model_kwargs.get("past_key_values"), input_ids.shape[-1])
    # For a prompt without images, image models put an empty dict there.
    given = {name for name, value in model_kwargs.items() if not _is_nothing(value)}
    refusals |= {f"`{name}`": True for name in given - DERIVED_MODEL_KWARGS}
    for name, refused in refusals.items():
        if refused:
            raise ValueError(f"{name[0].upper() + name[1:]} is not supported by hf_failfast yet.")
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(f"The generation mode {mode.value!r} is not supported by hf_failfast yet.")


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and not value)


def _cache_refusals(past: Cache | None, prompt_length: int) -> dict[str, bool]:
    """The cache of an earlier call must be a dynamic one, and the prompt must repeat its text and go on."""
    if past is None:
        return {}
    cached = past.get_seq_length()
    return {
        f"a {type(past).__name__} as `past_key_values`": type(past) is not DynamicCache,
        f"a prompt of {prompt_length} tokens for `past_key_values` that hold {cached} of them": (
            cached > 0 and cached >= prompt_length
        ),
    }


def warn_of_int8_outliers(model: PreTrainedModel) -> None:
    """Warns, once per place in the caller's code as Python does, of an 8-bit target whose outlier columns are chosen
    per forward: verifying several tokens at once then gives other logits than decoding them one by one."""
    threshold = getattr(getattr(model.config, "quantization_config", None), "llm_int8_threshold", 0.0)
    if threshold and getattr(model, "is_loaded_in_8bit", False):
        warnings.warn(
            f"The target was quantised with `llm_int8_threshold`={threshold}: which columns count as outliers depends "
            "on all tokens of a forward, so that drafted and plain texts may part. Load it with "
            "`BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)`.",
            stacklevel=2,
        )


def num_positions(model: PreTrainedModel) -> int:
    """The positions the target was made for; unlimited where its config names none."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or sys.maxsize


def draft_bound(model: PreTrainedModel, max_length: int, padding: int = 0) -> int:
    """How long a text of at most `max_length` tokens, leading padding included, may get by drafting: the target adds a
    token to every round, so a draft leaves room for it, and it stays within the target's positions."""
    return min(max_length - 1, padding + num_positions(model))


def left_padding(attention_mask: torch.Tensor | None) -> int:
    """How many leading positions of one prompt's mask (1, n) are padding. Raises ValueError on padding elsewhere."""
    if attention_mask is None:
        return 0
    padding = int((attention_mask == 0).sum())
    if padding == attention_mask.shape[1]:
        raise ValueError("`attention_mask` hides the whole prompt; an empty prompt is not supported.")
    if not bool(attention_mask[:, padding:].all()):
        raise ValueError(
            "`attention_mask` must hide a prefix of the prompt (left padding); others are not supported. If none was "
            "passed, transformers took ids that equal `pad_token_id` for padding: pass a mask of ones."
        )
    return padding
