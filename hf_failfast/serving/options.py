"""The options of a drafter inside vLLM: where they stand in its configuration, and what they may be."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..drafters.loading import load_drafter

# In vLLM's `additional_config`; its `speculative_config` takes no names but its own.
SECTION = "hf_failfast"
RULE = ("confidence_threshold", "chunk_length", "max_draft_length", "length_policy")
# What vLLM settles itself, or what could run code of a checkpoint.
_NOT_HERE = ("name_or_path", "dtype", "device_map", "allow_pickle", "mode", "hub_kwargs")
LOADING = (*(name for name in inspect.signature(load_drafter).parameters if name not in _NOT_HERE), "revision")


@dataclass(frozen=True)
class ServingOptions:
    """What a server is told about its drafter.

    drafter: folder or Hub id; None: the bundled one.
    kept_sequences: sequences whose drafter states are kept while they do not run (waiting, preempted, ended), >= 0.
    rule: FailFast's options by name (`RULE`); the drafter's own stand for the others.
    loading: keywords of `load_drafter` by name (`LOADING`).
    """

    drafter: str | None = None
    kept_sequences: int = 64
    rule: Mapping[str, Any] = field(default_factory=dict)
    loading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = self.kept_sequences
        if isinstance(kept, bool) or not isinstance(kept, int) or kept < 0:
            raise ValueError(f"`kept_sequences` must be an integer >= 0, but is {kept!r}.")
        if self.drafter is not None and not isinstance(self.drafter, str):
            raise ValueError(f"`drafter` must be a folder or a Hub id, but is {self.drafter!r}.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ServingOptions:
        """From names and values as they stand in a configuration. Raises ValueError on a name that is not known."""
        own = ("drafter", "kept_sequences")
        known = (*own, *RULE, *LOADING)
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f"Unknown option {unknown} of hf_failfast in vLLM; the options are {sorted(known)}.")
        return cls(
            **{name: given[name] for name in own if name in given},
            rule={name: given[name] for name in RULE if name in given},
            loading={name: given[name] for name in LOADING if name in given},
        )


def read_options(vllm_config: Any) -> ServingOptions:
    """The options in a `VllmConfig`: those of the JSON file that `speculative_config["revision"]` names, then those of
    `additional_config["hf_failfast"]`, a mapping or again the name of such a file, which win.

    Raises ValueError on a file that is missing or holds no JSON object, and on unknown options.
    """
    given: dict[str, Any] = {}
    revision = getattr(vllm_config.speculative_config, "revision", None)
    if revision:
        given.update(_from_file(revision, "speculative_config['revision']"))
    additional = getattr(vllm_config, "additional_config", None) or {}
    section = additional.get(SECTION, {}) if isinstance(additional, Mapping) else {}
    where = f"additional_config['{SECTION}']"
    if isinstance(section, str):
        section = _from_file(section, where)
    if not isinstance(section, Mapping):
        raise ValueError(f"`{where}` must be a mapping or a JSON file, but is {section!r}.")
    return ServingOptions.of(given | dict(section))


def _from_file(name: str, where: str) -> Mapping[str, Any]:
    try:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`{where}` must name a JSON file of options, but {name!r} is none ({error}).") from None
    if not isinstance(found, Mapping):
        raise ValueError(f"`{where}` must name a JSON file that holds an object, but {name!r} holds {found!r}.")
    return found
