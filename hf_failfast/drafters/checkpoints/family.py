"""What a row of the table of families says: how a checkpoint is recognised, what its files call things, who drafts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Listing:
    """A family's line in the documentation.

    ids: the Hub ids that the row was written for.
    targets: whose tokenizer it has.
    chunk: tokens that one pass can draft.
    checked: what agrees with the original's outputs, or that none were at hand.
    call: how it is loaded.
    """

    ids: str
    targets: str
    chunk: str
    checked: str
    call: str = "load_drafter(id)"


@dataclass(frozen=True)
class Family:
    """How the checkpoints of one family are recognised, loaded and read. All that a row names must hold.

    model_type: what their config says; None if it says none.
    body: the transformers model type that computes the same, given the attention of the spec; or, if not
        `native_body`, the name of code of ours. `LOADERS` (`drafters/loading.py`) has the bodies that are not loaded
        as a causal LM of transformers.
    spec: `DrafterSpec` values that hold for the family.
    classes, names: where the model type does not suffice: parts of the names of its classes (`architectures`,
        `auto_map`), or of the checkpoint itself, letters and digits only. One of them is enough.
    sign: a config key that stands for the class where the config names no class.
    needs: config keys that must be there.
    values: config key -> the value that it must have.

    config_defaults: config key -> what its absence means.
    config_keys: their config key -> ours. `block_size` and `mask_token_id` go to the spec.
    section: a part of their config whose keys win over those beside it. It holds `own_keys` only.
    body_section: the part of their config that describes the body, where it does not stand on top.
    body_config: the transformers model type whose config class reads the keys of a body of ours.
    own_keys: config keys that code of ours reads, beside `config_keys`; None: the row does not list them, and its
        loader sees to what it does not know.
    fixed: config keys that change what a model computes -> the values that are supported.
    without_effect: config keys that change nothing here: of training, of another sampler, of kernels.

    weights: the name of the weight file, without its ending.
    weight_keys: regular expressions over weight names -> what the body calls them, applied in this order.
    ignored_weights: regular expressions over stored buffers that the body computes itself.
    options: FailFast options that suit the family, for checkpoints that name none.
    takes_drafting_options: whether `DraftingOptions` fit; otherwise it drafts in its own way.
    reads_hidden_states: whether the drafter reads the target's hidden states.
    block_is_draft: whether one pass drafts one block, whose first position is the last known token.
    mask_is_last_id: whether the mask token is the last of the vocabulary where the config names none.
    mask_by_width: width of the body -> mask id, where checkpoints of a family differ and do not say it.
    listing: its line in the documentation; None if another row's stands for both.
    """

    name: str
    model_type: str | None
    body: str
    spec: Mapping[str, Any]
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    sign: str | None = None
    needs: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    config_defaults: Mapping[str, Any] = field(default_factory=dict)
    config_keys: Mapping[str, str] = field(default_factory=dict)
    section: str | None = None
    body_section: str | None = None
    body_config: str | None = None
    own_keys: tuple[str, ...] | None = None
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    without_effect: tuple[str, ...] = ()
    weights: str = "model"
    weight_keys: Mapping[str, str] = field(default_factory=dict)
    ignored_weights: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    native_body: bool = True
    takes_drafting_options: bool = True
    reads_hidden_states: bool = False
    block_is_draft: bool = False
    mask_is_last_id: bool = False
    mask_by_width: Mapping[int, int] = field(default_factory=dict)
    listing: Listing | None = None

    def matches(self, config: Mapping[str, Any], name: str) -> bool:
        """Whether a checkpoint with this config and this name (Hub id or folder) is one of the family."""
        if config.get("model_type") != self.model_type or any(key not in config for key in self.needs):
            return False
        if any(config.get(key) != value for key, value in self.values.items()):
            return False
        if not self.classes and not self.names:
            return True
        classes = class_names(config)
        has_class = _holds(" ".join(classes), self.classes)
        has_sign = self.sign is not None and self.sign in config and not classes
        return has_class or has_sign or _holds(_own_names(config, name), self.names)

    def renamed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config in our keys, flat. Raises ValueError on a key of `section` that the family does not know."""
        config = dict(config)
        part = config.pop(self.section, None) or {} if self.section else {}
        inner = {key: value for key, value in part.items() if value is not None}
        known = {*(self.own_keys or ()), *self.config_keys, *self.fixed, *self.without_effect}
        if unknown := sorted(inner.keys() - known):
            raise ValueError(
                f"The config's section `{self.section}` has {unknown}, which {self.name} checkpoints are not known to "
                "have: they could change what the drafter computes. If they do not, remove them."
            )
        body = config.pop(self.body_section, None) or {} if self.body_section else {}
        if body.get("model_type", self.body_config) != self.body_config:
            raise ValueError(
                f"`{self.body_section}` describes a {body['model_type']!r}; {self.name} checkpoints are supported "
                f"with {self.body_config!r} layers only."
            )
        said = {key: value for key, value in config.items() if value is not None}
        config = {**config, **self.config_defaults, **body, **said, **inner}
        named: dict[str, dict[str, Any]] = {}  # ours -> theirs -> value
        for key, ours in self.config_keys.items():
            if config.get(key) is not None:
                named.setdefault(ours, {})[key] = config.pop(key)
        for ours, values in named.items():
            if len({json.dumps(value) for value in values.values()}) > 1:
                raise ValueError(f"The config contradicts itself, since these mean the same: {values}.")
            config[ours] = next(iter(values.values()))
        return config


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The classes that a config names."""
    auto_map = config.get("auto_map") or {}
    return [*(config.get("architectures") or ()), *map(str, auto_map.values())]


def _own_names(config: Mapping[str, Any], name: str) -> str:
    return f"{name.rstrip('/').rsplit('/')[-1]} {config.get('_name_or_path') or ''}"


def _holds(labels: str, parts: tuple[str, ...]) -> bool:
    """Whether one of the parts stands in the labels; letters and digits only, in any case."""
    labels = re.sub(r"[^a-z0-9 ]", "", labels.lower())
    return any(part in labels for part in parts)
