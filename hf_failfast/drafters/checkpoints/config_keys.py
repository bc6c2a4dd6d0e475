"""Which keys of a checkpoint's config are read and which change nothing; any other one could change the output."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from .family import Family

Verdict = Literal["read", "fixed", "without effect"]

# What any config may say: names and bookkeeping, heads of other tasks, how transformers runs a model. Settings of
# generation are without effect, too: a drafter never generates.
BOOKKEEPING = frozenset(
    [
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_flash_attn_2_enabled",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "initializer_range",
        "is_decoder",
        "model_type",
        "prefix",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_bfloat16",
    ]
)


def verdict(family: Family, key: str) -> Verdict | None:
    """What becomes of a key of such a checkpoint's config, in the family's keys; None: the family does not know it."""
    if key in family.fixed:
        return "fixed"
    if key in family.config_keys or key in (family.section, family.body_section, *(family.own_keys or ())):
        return "read"
    if key == "mask_token_id" and family.spec.get("noise", "mask") == "mask":
        return "read"
    has_block = family.block_is_draft or family.spec["attention"] in ("block_causal", "anchored_canvas")
    if key == "block_size" and has_block:
        return "read"
    if key in BOOKKEEPING or key in family.without_effect:
        return "without effect"
    if key == "quantization_config":  # transformers reads it, our loaders do not
        return "read" if family.native_body else None
    body = family.body if family.native_body else family.body_config
    if body is not None and key in body_keys(body):
        return "read"
    return "without effect" if key in _generation_keys() else None


def check_config(family: Family, config: Mapping[str, Any]) -> None:
    """Raises ValueError on a key that the family does not know, and on a value that is not supported.

    config: in our keys (`Family.renamed`). A key without a value says nothing.
    """
    ours = set(family.config_keys.values())
    given = {key: value for key, value in config.items() if value is not None and key not in ours}
    for key, supported in family.fixed.items():
        if key in given and given[key] not in supported:
            only = f", only as {' or '.join(map(repr, supported))}" if supported else ""
            raise ValueError(f"`{key}` is not supported as {given[key]!r} in a {family.name} checkpoint{only}.")
    if not family.native_body and family.own_keys is None:
        return
    if unknown := sorted(key for key in given if verdict(family, key) is None):
        raise ValueError(
            f"The config has {unknown}, which {family.name} checkpoints are not known to have: they could change what "
            "the drafter computes. If they do not, remove them from config.json."
        )


@cache
def body_keys(model_type: str) -> frozenset[str]:
    """The keys that transformers' config class of a model type takes, under their older names too."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class: Any = CONFIG_MAPPING[model_type]
    keys = {*config_class().to_dict(), *config_class.attribute_map}
    for parent in config_class.__mro__:
        keys |= set(vars(parent).get("__annotations__", {}))
    if "rope_parameters" in keys:
        keys |= {"rope_theta", "rope_scaling"}
    return frozenset(keys)


@cache
def _generation_keys() -> frozenset[str]:
    from transformers import GenerationConfig

    return frozenset(GenerationConfig().to_dict())
