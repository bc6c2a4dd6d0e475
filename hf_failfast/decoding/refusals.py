"""Requests that the loop does not support; each is refused with a ValueError that names it."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache, DynamicCache, GenerationConfig, StaticCache
from transformers.cache_utils import StaticLayer
from transformers.generation.configuration_utils import GenerationMode

from ..compatibility import CACHE, READS_WHOLE_TEXT_AGAIN
from ..engine.causal_lm import attention_name, has_several_states
from ..engine.positions import GOES_BY_DISTANCES, LEAVES_OUT_HIDDEN, counted_from, position_table, rope_change
from ..engine.slot_cache import layer_windows, storing_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Model arguments that `generate` itself adds; the loop derives positions, mask and cache from the tokens.
DERIVED_MODEL_KWARGS = frozenset(
    {
        "attention_mask",
        "cache_position",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        CACHE,
        "position_ids",
        "use_cache",
    }
)

# The kind of each token of a prompt. Zero is text, except where a family gives zeros another meaning: GPT-2 adds
# an embedding, and PaliGemma's zeros see each other both ways.
TOKEN_TYPES = ("mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids")
ZEROS_ARE_TEXT = ("gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "shieldgemma2")

# Arguments of `generate` that replace what the loop derives.
UNSUPPORTED_ARGUMENTS = (
    "cache_position",
    "inputs_embeds",
    "position_ids",
)

# Model types whose `prepare_inputs_for_generation` makes other inputs than the loop does, which never calls it, and
# what these are.
OWN_INPUTS = {
    "cpmant": "whose forward takes the whole text each time",
    "kosmos-2.5": "whose positions begin after its padding id",
    "mllama": "whose layers of cross-attention are left out for a text",
    "musicgen_decoder": "which delays its codebooks",
    "musicgen_melody_decoder": "which delays its codebooks",
    "openai-gpt": "which has no cache",
    "paligemma": "which counts positions from one and reads a prompt in both directions",
    "reformer": "which keeps buckets of its own",
    "xlm": "which reads a mask token after the text",
    "xlnet": "which reads a permutation of the text",
}

# Those that transformers' own assisted loop makes the right inputs for.
OWN_INPUTS_OF_OTHER_LOOP = ("kosmos-2.5", "mllama")

# Model types with a sliding window whose forward makes no mask for it.
UNMASKED_WINDOWS = ("moshi",)

# Fields of other decoding methods, of transformers' own ways to draft and of its prefill.
UNSUPPORTED_FIELDS = (
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "constraints",
    "dola_layers",
    "force_words_ids",
    "is_assistant",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "penalty_alpha",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "speculation_type",
    "target_lookbehind",
    "use_mtp",
)

# Those among them that say how another model drafts: with a target they are notes, which plain `generate` ignores.
ASSISTANT_FIELDS = (
    "assistant_confidence_threshold",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "speculation_type",
    "target_lookbehind",
)

# Values of `cache_implementation` for caches that keep K/V in a place or form that the loop cannot read.
UNSUPPORTED_CACHES = (
    "offloaded",
    "offloaded_hybrid",
    "offloaded_hybrid_chunked",
    "offloaded_static",
    "paged",
    "quantized",
)


def check_arguments(model: PreTrainedModel, arguments: dict[str, Any]) -> None:
    """Raises ValueError on arguments of `generate` that drafting cannot honour, and on targets that make inputs of
    their own."""
    kind = model.config.model_type
    if kind in OWN_INPUTS:
        in_other_loop = "; `hf_failfast.assisted_generate` drafts for it" if kind in OWN_INPUTS_OF_OTHER_LOOP else ""
        raise ValueError(f"A `{kind}` target, {OWN_INPUTS[kind]}, is not supported by hf_failfast yet{in_other_loop}.")
    given = arguments.get("generation_config")
    values = {name: arguments.get(name) for name in UNSUPPORTED_ARGUMENTS}
    values |= {name: arguments.get(name, getattr(given, name, None)) for name in UNSUPPORTED_FIELDS}
    for name, value in values.items():
        if value is not None and value is not False:
            raise ValueError(f"`{name}` is not supported by hf_failfast yet.")
    _check_saved_fields(model, {name for name in UNSUPPORTED_FIELDS if name not in arguments})
    kept = arguments.get("logits_to_keep", 0)  # `generate` reads the last logits only, however many are kept
    if not isinstance(kept, int) or kept < 0:
        raise ValueError(f"`logits_to_keep` must be a number >= 0, but is {kept!r}.")
    config = given or model.generation_config
    cache = arguments.get("cache_implementation") or config.cache_implementation
    if cache in UNSUPPORTED_CACHES:
        raise ValueError(
            f"`cache_implementation`={cache!r} is not supported by hf_failfast: 'dynamic' and 'static' are."
        )


def _check_saved_fields(model: PreTrainedModel, names: Collection[str]) -> None:
    """Raises ValueError on fields of the target's own `generation_config`, which the call says nothing of; warns of
    those that plain `generate` ignores too."""
    for name in sorted(names):
        value = getattr(model.generation_config, name, None)
        if value is None or value is False:
            continue
        saved = f"`{name}`={value!r} of the target's `generation_config`"
        if name not in ASSISTANT_FIELDS:
            raise ValueError(f"{saved} is not supported by hf_failfast yet: pass `{name}=None`.")
        warnings.warn(f"{saved} is for assistants of transformers and has no effect here.", stacklevel=2)


def check_state(model: PreTrainedModel) -> None:
    """Raises ValueError on a target that cannot take back rejected tokens, in our loop or in transformers'."""
    if getattr(model, "_is_stateful", False):
        raise ValueError(
            f"`{model.config.model_type}` keeps a recurrent state, which cannot be rolled back to before a rejected "
            "token: neither hf_failfast nor transformers' assisted generation supports it. Use plain `generate`."
        )


def fits_slots(model: PreTrainedModel) -> bool:
    """Whether the loop can keep the target's cache in slots; if not, `check_request` or the cache says why."""
    if model.config.is_encoder_decoder:
        return False
    try:
        layer_windows(model.config.get_text_config(decoder=True))
    except ValueError:
        return False
    return True


def check_request(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    synced_gpus: bool,
) -> None:
    """Raises ValueError naming the first part of a prepared request that the loop does not support."""
    if model.config.is_encoder_decoder:
        raise ValueError(
            "Encoder-decoder targets are not supported by `custom_generate`: call "
            "`hf_failfast.assisted_generate(model, ...)`, which drafts in transformers' own loop."
        )
    config = generation_config
    for name, highest in (("temperature", float("inf")), ("top_p", 1.0)):  # plain `generate` ignores a larger `top_p`
        if not 0 <= (value := getattr(config, name) or 0) <= highest:
            raise ValueError(f"`{name}` must be between 0 and {highest}, but is {value}.")
    positions = position_table(model.config.get_text_config(decoder=True))
    mask = model_kwargs.get("attention_mask")
    refusals = {
        f"`num_beams`={config.num_beams}": (config.num_beams or 1) > 1,
        "`use_cache=False` (if it is saved in the target's `generation_config`, pass `use_cache=True`)": (
            config.use_cache is False
        ),
        f"a target without `{CACHE}`": config.use_cache is not False and CACHE not in model_kwargs,
        f"a `{model.config.model_type}` whose tokens see later ones (`is_decoder=False`, "
        "`use_bidirectional_attention`)": sees_later_tokens(model),
        f"a `{model.config.model_type}` with `use_learned_position_embeddings=False`, whose positions leave out its "
        "padding id": getattr(model.config, "use_learned_position_embeddings", None) is False,
        "`synced_gpus`": synced_gpus,
        "an empty prompt": input_ids.shape[-1] == 0,
        "an `attention_mask` that hides a whole prompt": mask is not None and not bool(mask.any(dim=-1).all()),
        f"a prompt of {input_ids.shape[-1]} tokens for a target with `max_position_embeddings`={positions}": (
            positions is not None and input_ids.shape[-1] > positions
        ),
    }
    refusals |= _attention_refusals(model, config, model_kwargs.get(CACHE))
    refusals |= _window_refusals(model, config.max_length)
    refusals |= _place_refusals(model, input_ids.shape[0], mask, config.max_length)
    refusals |= _rope_refusals(model, input_ids, mask, config, model_kwargs.get(CACHE))
    refusals |= _cache_refusals(model_kwargs.get(CACHE), input_ids, config.max_length)
    # For a prompt without images, image models put an empty dict there.
    given = {name for name, value in model_kwargs.items() if not _is_nothing(value)}
    given = {name for name in given if not _are_text(model, name, model_kwargs[name])}
    refusals |= {f"`{name}`": True for name in given - DERIVED_MODEL_KWARGS}
    for name, refused in refusals.items():
        if refused:
            raise ValueError(f"{name[0].upper() + name[1:]} is not supported by hf_failfast yet.")
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(f"The generation mode {mode.value!r} is not supported by hf_failfast yet.")


def sees_later_tokens(model: PreTrainedModel) -> bool:
    """Whether a draft would change what the target makes of the tokens before it."""
    config = model.config.get_text_config(decoder=True)
    is_encoder = getattr(config, "is_decoder", None) is False and not config.model_type.startswith("gpt_neox")
    return is_encoder or getattr(config, "use_bidirectional_attention", None) in (True, "all")


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and not value)


def _are_text(model: PreTrainedModel, name: str, value: Any) -> bool:
    """Whether the argument says no more than that all tokens are text; processors of image models always say so."""
    if name not in TOKEN_TYPES or not isinstance(value, torch.Tensor) or bool(value.any()):
        return False
    is_bert = getattr(model.config, "type_vocab_size", None) is not None  # zeros are its default
    return name != "token_type_ids" or is_bert or model.config.model_type in ZEROS_ARE_TEXT


def _attention_refusals(model: PreTrainedModel, config: GenerationConfig, past: Cache | None) -> dict[str, bool]:
    """Refuses weights where the attention keeps none (plain `generate` returns tuples without weights) and for static
    caches (whose empty slots it returns, too)."""
    attention = attention_name(model)
    is_asked = bool(config.return_dict_in_generate and config.output_attentions)
    text_config, kind = model.config.get_text_config(decoder=True), model.config.model_type
    return {
        f"`output_hidden_states` of `{kind}`, which are several per layer": (
            has_several_states(text_config) and bool(config.return_dict_in_generate and config.output_hidden_states)
        ),
        f"`output_attentions` of `{kind}`, whose last layers read the K/V of earlier ones": (
            is_asked and bool(getattr(text_config, "num_kv_shared_layers", 0))
        ),
        f"`output_attentions` with `attn_implementation`={attention!r} (only 'eager' returns weights)": (
            is_asked and attention != "eager"
        ),
        "`output_attentions` with a static cache": is_asked and isinstance(past, StaticCache),
    }


def _window_refusals(model: PreTrainedModel, max_length: int) -> dict[str, bool]:
    """Refuses windows that only the cache of plain `generate` makes: there the tokens of a prompt see all before them,
    and later ones what the cache has kept."""
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    return {
        f"`max_length`={max_length} for a `{config.model_type}` with `sliding_window`={window}, which it has no mask "
        "for": config.model_type in UNMASKED_WINDOWS and window is not None and max_length > window,
    }


def _place_refusals(
    model: PreTrainedModel, num_rows: int, mask: torch.Tensor | None, max_length: int
) -> dict[str, bool]:
    """Refuses batches where the attention cannot take a 4-D mask with each sequence's own positions, and padding where
    plain `generate` counts it, for the loop leaves it out."""
    config = model.config.get_text_config(decoder=True)
    attention = attention_name(model)
    counted = counted_from(config)
    # A row's tokens are taken for at most as many places later as a draft is long.
    counts = counted is not None and 2 * max_length > counted
    return {
        f"a batch of {num_rows} prompts for `{config.model_type}` with ALiBi, which it computes from a mask of two "
        "dimensions (one prompt at a time is fine)": num_rows > 1 and has_alibi(model),
        f"a batch of {num_rows} prompts with `attn_implementation`={attention!r} (only 'sdpa' and 'eager' take the "
        "mask of a batch; one prompt at a time is fine)": num_rows > 1 and attention not in ("sdpa", "eager"),
        f"a batch of {num_rows} prompts with `max_length`={max_length} for `{config.model_type}`, which "
        f"takes the place of a token from the longest row (one prompt at a time is fine)": num_rows > 1 and counts,
        f"a padded prompt with `max_length`={max_length} for `{config.model_type}`, which counts hidden tokens as "
        "places (leave the padding out)": counts and mask is not None and _moves_places(config.model_type, mask),
    }


def _moves_places(model_type: str, mask: torch.Tensor) -> bool:
    """Whether the hidden tokens of an `attention_mask` (B, n) change what a model that counts places makes of the
    others. Where distances alone matter, only those that are hidden between visible ones do."""
    if model_type in LEAVES_OUT_HIDDEN:
        return False
    if model_type not in GOES_BY_DISTANCES:
        return not bool(mask.all())
    shown = mask.bool()
    starts = (shown[:, 1:] & ~shown[:, :-1]).sum(dim=1) + shown[:, 0]
    return bool((starts > 1).any())


def has_alibi(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config(decoder=True)
    return config.model_type == "bloom" or getattr(config, "alibi", False) is True


def _rope_refusals(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    mask: torch.Tensor | None,
    config: GenerationConfig,
    past: Cache | None,
) -> dict[str, bool]:
    """A forward has one set of rotary frequencies for all rows, and transformers counts padding where it reads the
    text again with another set."""
    change = rope_change(model.config.get_text_config(decoder=True))
    num_rows, width = input_ids.shape
    if change is None or config.max_length <= change.length:
        return {}
    lengths = [width] if mask is None else mask.sum(dim=-1).tolist()
    crosses = min(lengths) <= change.length
    cached = 0 if past is None else int(past.get_seq_length())
    asked = bool(config.return_dict_in_generate and (config.output_hidden_states or config.output_attentions))
    where = (
        f"`original_max_position_embeddings`={change.length}"
        if change.kind == "longrope"
        else f"`max_position_embeddings`={change.length + 1}"
    )
    text = f"with `max_length`={config.max_length} for rotary embeddings ({change.kind!r}) that change at {where}"
    return {
        f"a batch of {num_rows} prompts {text} (one prompt at a time is fine)": (
            num_rows > 1 and (crosses or change.kind == "dynamic")
        ),
        f"with transformers before 5.20, whose plain `generate` forgets the text there, a prompt {text}": (
            change.reads_again and crosses and not READS_WHOLE_TEXT_AGAIN
        ),
        f"a padded prompt {text}": change.reads_again and min(lengths) < width and crosses,
        f"`{CACHE}` of {cached} tokens {text}": change.reads_again and 0 < cached <= change.length,
        f"`output_hidden_states` or `output_attentions` {text}": change.reads_again and asked and crosses,
    }


def check_own_loop(model: PreTrainedModel, max_length: int) -> None:
    """Raises ValueError on a target that reads its text again in the middle, which transformers' assisted loop
    cannot do."""
    change = rope_change(model.config.get_text_config(decoder=True))
    if change is not None and change.reads_again and max_length > change.length:
        raise ValueError(
            f"`assisted_generate` with `max_length`={max_length} is not supported for `{model.config.model_type}`, "
            f"which reads its text again beyond `original_max_position_embeddings`={change.length}: use "
            '`custom_generate="hf_failfast"`.'
        )


def _cache_refusals(past: Cache | None, input_ids: torch.Tensor, max_length: int) -> dict[str, bool]:
    """Requires that slots can be loaded from and stored to the cache of an earlier call, that the prompt repeats its
    text and continues it, and that the answer fits."""
    if past is None:
        return {}
    name = f"a {type(past).__name__} as `{CACHE}`"
    if not _is_known(past):
        return {name: True}
    (num_rows, length), cached = input_ids.shape, int(past.get_seq_length())
    keys = [layer.keys for layer in past.layers if getattr(layer, "keys", None) is not None]
    held = len(keys[0]) if keys else num_rows
    slots = [
        layer.max_cache_len
        for layer in storing_layers(past)
        if isinstance(past, StaticCache) and type(layer) is StaticLayer
    ]
    return {
        f"a batch of {num_rows} prompts for `{CACHE}` of {held}": num_rows != held,
        f"a prompt of {length} tokens for `{CACHE}` that hold {cached} of them": cached >= length,
        f"{name} of {min(slots, default=0)} slots for a text of up to `max_length`={max_length} tokens": (
            min(slots, default=max_length) < max_length - 1  # the last token's K/V are never computed
        ),
    }


def _is_known(past: Cache) -> bool:
    """Whether it is a dynamic or static cache, or a subclass that holds its K/V as these do."""
    methods = ("update", "get_seq_length", "get_mask_sizes")
    is_changed = any(getattr(type(past), method) is not getattr(Cache, method) for method in methods)
    return isinstance(past, (DynamicCache, StaticCache)) and not is_changed and not past.offloading


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
