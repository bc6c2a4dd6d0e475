"""A checkpoint folder or Hub id, from its config and headers alone: no weight is read, nothing is executed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import TYPE_CHECKING, Any, get_args

from huggingface_hub import is_offline_mode
from safetensors import SafetensorError, safe_open

from ..spec import SECTION, AttentionKind, DrafterSection, DrafterSpec
from .families import FAMILIES, block_size_of_name, bodies, check_section, find_family, nearest_family
from .family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LORA_CONFIG = "adapter_config.json"  # PEFT's
CONFIGS = ("config.json", LORA_CONFIG)  # a checkpoint has one of them
LORA_SECTION = "failfast.json"  # this project's section of a LoRA, which PEFT's config has no place for

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")

# Keys that some configs switch off with `false`, which transformers' config classes refuse.
OFF = ("rope_scaling", "sliding_window")

# Keys that would point transformers to the checkpoint's own code, to a class that is not there, or to an attention
# kernel that does not take the runner's masks (SDAR asks for flex attention).
DROPPED_KEYS = ("auto_map", "architectures", "model_type", "attn_implementation", "_attn_implementation")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is understood.

    config: its config in the body's own keys, without references to code.
    family: a row of `FAMILIES`, or what the checkpoint itself and the caller say in its place.
    section: what this project's trainer wrote into the config; empty for other checkpoints.
    is_listed: whether the family is a row.
    """

    name: str
    config: dict[str, Any]
    family: Family
    spec: DrafterSpec
    section: DrafterSection
    hub_kwargs: dict[str, Any]
    is_listed: bool = True

    @property
    def safetensors(self) -> tuple[str, str]:
        """What its weight file is called, and the index of several."""
        name = f"{self.family.weights}.safetensors"
        return name, f"{name}.index.json"

    def file(self, name: str) -> str | None:
        """The local path of one of its files; None if it has none of that name."""
        return find_file(self.name, name, self.hub_kwargs)

    def native_config(self) -> PreTrainedConfig:
        """The config of the transformers model that is the body."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        config: PreTrainedConfig = CONFIG_MAPPING[self.family.body].from_dict(self.config)
        return config


def read_checkpoint(name_or_path: str | Path, given: dict[str, Any], hub_kwargs: dict[str, Any]) -> Checkpoint:
    """Reads config and spec; `given` are the spec values of the caller, which win over the checkpoint.

    Raises:
        ValueError: the checkpoint's kind is unknown or its spec incomplete; names the nearest known family.
    """
    name = str(name_or_path)
    config = _read_config(name, hub_kwargs)
    section = DrafterSection.of(config.pop(SECTION, {}))
    known = _known_family(name, config, section, given)
    family = known or _unlisted(name, config, section)
    if family.native_body and not _is_native(family.body):
        raise ValueError(_no_body(family))
    config = family.renamed(config)
    spec = _spec(name, config, family, section, given, hub_kwargs)
    for key in (*DROPPED_KEYS, *(key for key in OFF if config.get(key) is False)):
        config.pop(key, None)
    return Checkpoint(name, config, family, spec, section, hub_kwargs, is_listed=known is not None)


def _known_family(name: str, config: dict[str, Any], section: DrafterSection, given: dict[str, Any]) -> Family | None:
    """The row of the checkpoint; None for this project's own, and for what the caller's arguments must say."""
    if "attention" in section.spec and "peft_type" not in config:
        return None
    try:
        return find_family(config, name)
    except ValueError:
        if "attention" in given:
            return None
        raise


def _is_native(model_type: str) -> bool:
    """Whether the installed transformers has a model of that type."""
    if model_type in _config_names():
        return True
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # with those that a caller registered

    return model_type in CONFIG_MAPPING


@cache
def _config_names() -> dict[str, str]:
    """transformers' table of model types, read as a file: importing it imports transformers, for seconds."""
    package = find_spec("transformers")
    folders = (package and package.submodule_search_locations) or []
    tables = [path for folder in folders if (path := Path(folder, "models", "auto", "auto_mappings.py")).is_file()]
    return run_path(str(tables[0]))["CONFIG_MAPPING_NAMES"] if tables else {}


def _unlisted(name: str, config: dict[str, Any], section: DrafterSection) -> Family:
    """A drafter of this project, or a causal LM that the caller's arguments make one, as a family of its own."""
    check_section(config)
    if "model_type" not in config:
        raise ValueError(f"{name!r} has no config.json that names a `model_type`; it is no checkpoint to load.")
    model_type = str(config["model_type"])
    return Family(
        "by arguments" if section == DrafterSection() else "hf_failfast",
        model_type,
        bodies().get(model_type, model_type),
        spec={},
        takes_drafting_options=not section.conditioned,
        reads_hidden_states=section.conditioned,
    )


def _no_body(family: Family) -> str:
    if family in FAMILIES:
        from ...compatibility import OLDEST

        return (
            f"{family.name} checkpoints need the class that transformers calls {family.body!r}, and the installed "
            f"transformers has none: update it (transformers >= {OLDEST})."
        )
    return (
        f"The checkpoint's `model_type` is {family.model_type!r}, which is neither native to transformers nor a known "
        f"drafter family, and a checkpoint's own code is never run. {_nearest(str(family.model_type))}"
    )


def find_file(name_or_path: str, file_name: str, hub_kwargs: dict[str, Any]) -> str | None:
    """The local path of a checkpoint's file (fetched from the Hub if it is there only); None if there is none."""
    if Path(name_or_path).is_dir():
        local = Path(name_or_path, hub_kwargs.get("subfolder", ""), file_name)
        return str(local) if local.is_file() else None
    from transformers.utils.hub import cached_file

    path: str | None = cached_file(
        name_or_path,
        file_name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub_kwargs,
    )
    return path


def check_format(checkpoint: Checkpoint, allow_pickle: bool) -> None:
    """Raises FileNotFoundError on a checkpoint without weights, ValueError on a pickle that may not be read."""
    safetensors = checkpoint.safetensors
    if any(checkpoint.file(name) for name in safetensors):
        return
    if not any(checkpoint.file(name) for name in PICKLES):
        raise FileNotFoundError(
            f"{checkpoint.name!r} holds no weights that could be loaded (no {safetensors[0]}): it has no weights, "
            "only a config.json."
        )
    if not allow_pickle:
        raise ValueError(
            f"{checkpoint.name!r} holds its weights as a pickle only, which can execute code when read: convert them "
            "to safetensors, or pass `allow_pickle=True` if you trust their author."
        )


def weight_shapes(path: str) -> dict[str, tuple[list[int], str]]:
    """Name -> (shape, safetensors dtype) from a file's header. Raises ValueError on a damaged file."""
    try:
        with safe_open(path, "np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            return {key: (value.get_shape(), value.get_dtype()) for key, value in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"The weight file {Path(path).name} is damaged or incomplete: {error}.") from error


def _read_config(name: str, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    config = _folder_config(name, hub_kwargs) if Path(name).is_dir() else _hub_config(name, hub_kwargs)
    if config.get("model_type") in (None, "gpt2"):
        path = find_file(name, "model.safetensors", hub_kwargs)
        shapes = weight_shapes(path) if path else {}
        if any(key.startswith("denoise_model.") for key in shapes):
            config = _diffugpt_config(config, shapes)
    return config


def _folder_config(name: str, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Empty if the folder holds weights without a config. It is read without transformers, whose import is slow."""
    path = find_file(name, "config.json", hub_kwargs)
    if path is not None:
        return read_json(path)
    if lora := _lora_config(name, hub_kwargs):
        return lora
    if find_file(name, "model.safetensors", hub_kwargs) is None:
        raise OSError(f"{name!r} is a folder without a config.json: it holds no checkpoint.")
    return {}


def _lora_config(name: str, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """What PEFT's config of a LoRA says, with this project's section if the LoRA has one; empty if it is none."""
    path = find_file(name, LORA_CONFIG, hub_kwargs)
    if path is None:
        return {}
    config = read_json(path)
    section = find_file(name, LORA_SECTION, hub_kwargs)
    own = {} if section is None else {SECTION: read_json(section)}
    return config | own | {"_name_or_path": config.get("base_model_name_or_path")}


def read_json(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises ValueError naming the file if it holds none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, but holds a {type(content).__name__}.")
    return content


def _hub_config(name: str, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Empty if the repository holds weights without a config."""
    from transformers import PreTrainedConfig

    try:
        config: dict[str, Any] = PreTrainedConfig.get_config_dict(name, **hub_kwargs)[0]
        return config
    except OSError as error:
        if lora := _lora_config_within_reach(name, hub_kwargs):
            return lora
        if _is_out_of_reach(name, hub_kwargs):
            raise OSError(_out_of_reach(name, error)) from error
        return {}


def _lora_config_within_reach(name: str, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        return _lora_config(name, hub_kwargs)
    except OSError:
        return {}


def _is_out_of_reach(name: str, hub_kwargs: dict[str, Any]) -> bool:
    try:
        return find_file(name, "model.safetensors", hub_kwargs) is None
    except OSError:
        return True


def _out_of_reach(name: str, error: OSError) -> str:
    reason = str(error).strip().splitlines()[0]
    if is_offline_mode():
        reason = "huggingface_hub is offline (HF_HUB_OFFLINE=1) and has no copy: unset HF_HUB_OFFLINE to fetch it"
    return (
        f"{name!r} is neither a folder with a config.json nor a Hub repository within reach: {reason} "
        "(private and gated repositories need `token=` or `hf auth login`)"
    )


def _diffugpt_config(config: dict[str, Any], shapes: dict[str, tuple[list[int], str]]) -> dict[str, Any]:
    """DiffuGPT saves a wrapper's weights, with GPT-2's config or with none: the sizes are in the shapes, 64 per head
    as in GPT-2."""
    vocab_size, width = shapes["embed_tokens.weight"][0]
    layers = {int(found.group(1)) for key in shapes if (found := re.match(r"denoise_model\.h\.(\d+)\.", key))}
    sizes = {
        "vocab_size": vocab_size,
        "n_embd": width,
        "n_layer": len(layers),
        "n_positions": shapes["denoise_model.wpe.weight"][0][0],
    }
    return {"n_head": max(width // 64, 1)} | config | sizes | {"model_type": "diffugpt"}


def _spec(
    name: str,
    config: dict[str, Any],  # in our keys
    family: Family,
    section: DrafterSection,
    given: dict[str, Any],
    hub_kwargs: dict[str, Any],
) -> DrafterSpec:
    named = {
        "block_size": config.get("block_size") or block_size_of_name(name),
        "mask_token_id": config.get("mask_token_id"),
        "shift": int(config["shift"]) if "shift" in family.config_keys.values() and "shift" in config else None,
    }
    is_open = named["mask_token_id"] is None and "mask_token_id" not in {**section.spec, **given}
    if is_open and family.spec.get("noise", "mask") == "mask":
        named["mask_token_id"] = _mask_of_tokenizer(name, hub_kwargs)
    values: dict[str, Any] = {"shift": 0, "mask_token_id": _usual_mask(family, config), **family.spec}
    values |= {key: value for key, value in named.items() if value is not None}
    values |= {**section.spec, **given}
    if "attention" not in values:
        raise ValueError(
            f"{name!r} is an ordinary causal LM (`model_type` {family.model_type!r}), not a drafter: its config "
            f"does not say how it drafts: pass `attention=` (one of {list(get_args(AttentionKind))}), "
            "`shift=`, `mask_token_id=` and, for block_causal, `block_size=` to read it as one. "
            f"{_nearest(str(family.model_type))}"
        )
    if values["attention"] != "block_causal":
        if not family.block_is_draft and values["attention"] != "anchored_canvas":
            values.pop("block_size", None)
        values.pop("alignment", None)
    return DrafterSpec(**values)


def _usual_mask(family: Family, config: dict[str, Any]) -> int | None:
    """The mask id of a family whose row names none for all its checkpoints."""
    if family.mask_is_last_id:
        return int(config["vocab_size"]) - 1
    return family.mask_by_width.get(config.get("n_embd", config.get("hidden_size", 0)))


def _mask_of_tokenizer(name: str, hub_kwargs: dict[str, Any]) -> int | None:
    """The id of the mask token that the checkpoint's tokenizer_config.json declares; None if it declares none."""
    path = find_file(name, "tokenizer_config.json", hub_kwargs)
    if path is None:
        return None
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    mask = config.get("mask_token")
    content = mask.get("content") if isinstance(mask, dict) else mask
    added = config.get("added_tokens_decoder", {})
    return next((int(token_id) for token_id, token in added.items() if content and token["content"] == content), None)


def _nearest(model_type: str) -> str:
    family = nearest_family(model_type)
    return f"The nearest known family is {family.name} (`model_type` {family.model_type!r}): {dict(family.spec)}."
