"""What a drafter checkpoint is and whether it fits a target: what the loader does with it, without its weights.

The loader needs torch, which takes seconds to import. This project's own checkpoints, which its trainer and tools
write, are described without it; everything else, and what is to fit a target, is loaded from its headers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import is_offline_mode

from ...config import FailFastConfig
from ..spec import DrafterSpec
from .reading import Checkpoint, check_format, read_checkpoint, weight_shapes
from .target_fit import made_for_folder

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from ..base import DiffusionDrafter

# Bytes per element of safetensors' dtypes.
ELEMENT_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}
# The chunk rule's numbers: tau, N, N_max.
RULE = ("confidence_threshold", "chunk_length", "max_draft_length")


@dataclass(frozen=True)
class Inspection:
    """A checkpoint, read from config and headers.

    parameters: elements in the weight files.
    weight_bytes: what they take in memory in the checkpoint's dtypes, K/V slots not counted.
    conditioned: whether the drafter reads the target's hidden states.
    hidden_size, vocab_size: of the body; None where the config does not say.
    target_layers: of a conditioned drafter, the target's layers that it reads at, counted from 0.
    made_for_layers: the layers of the target it was made for, if its config says.
    made_for: the target it was made for, if its config names one.
    chunk_per_pass: the longest chunk that one pass can fill; None if nothing bounds it.
    options: tau, N and N_max that are used unless others are given, by name.
    is_made_for_target: whether the target given is that of `made_for`; None where nothing can be compared.
    misfit: why the target cannot be drafted for; None if it can, or if no target was given.
    """

    name: str
    family: str
    body: str
    spec: DrafterSpec
    parameters: int
    weight_bytes: int
    dtypes: tuple[str, ...]
    conditioned: bool
    chunk_per_pass: int | None
    misfit: str | None
    hidden_size: int | None = None
    vocab_size: int | None = None
    target_layers: tuple[int, ...] = ()
    made_for_layers: int | None = None
    made_for: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    is_made_for_target: bool | None = None

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of everything, ready to print."""
        spec = self.spec
        attention = spec.attention + (f", blocks of {spec.block_size}" if spec.block_size else "")
        return [
            ("checkpoint", self.name),
            ("family", self.family),
            ("body", self.body),
            ("attention", attention + (", free alignment" if spec.alignment == "free" else "")),
            ("token shift", str(spec.shift)),
            ("mask id", _mask(spec)),
            ("conditioned", "on the target's hidden states" if self.conditioned else "no"),
            ("made for", self.made_for or "not recorded"),
            ("tau, N, N_max", ", ".join(str(self.options[name]) for name in RULE if name in self.options)),
            ("chunk per pass", "as long as asked" if self.chunk_per_pass is None else f"up to {self.chunk_per_pass}"),
            ("parameters", f"{self.parameters / 1e6:,.1f} M"),
            ("weights", f"{self.weight_bytes / 2**20:,.1f} MiB as {', '.join(self.dtypes) or 'a pickle'}"),
        ]


def _mask(spec: DrafterSpec) -> str:
    if spec.mask_token_id is None:
        return "none (random canvas)"
    return f"none (random tokens below {spec.mask_token_id})" if spec.noise == "random" else str(spec.mask_token_id)


def inspect_checkpoint(
    name_or_path: str | Path, target: str | Path | None = None, hub_kwargs: dict[str, Any] | None = None, **given: Any
) -> Inspection:
    """Inspects a checkpoint folder or Hub id; `given` are spec values as for `load_drafter`.

    Raises what `load_drafter` raises for it. The weights of a Hub repository that was not fetched are not compared.
    """
    checkpoint = read_checkpoint(name_or_path, given, hub_kwargs or {})
    family, section = checkpoint.family, checkpoint.section
    if _is_own(checkpoint) and Path(checkpoint.name).is_dir():
        check_format(checkpoint, allow_pickle=False)
    is_read = target is None and _is_own(checkpoint) and _has_weights(checkpoint)
    drafter = None if is_read else _from_headers(checkpoint)
    counts = _elements(checkpoint)
    return Inspection(
        name=checkpoint.name,
        family=family.name,
        body=family.body,
        spec=checkpoint.spec,
        parameters=sum(counts.values()),
        weight_bytes=sum(count * ELEMENT_SIZES.get(dtype, 1) for dtype, count in counts.items()),
        dtypes=tuple(sorted(counts)),
        conditioned=family.reads_hidden_states,
        chunk_per_pass=_chunk_per_pass(checkpoint),
        misfit=None if target is None or drafter is None else _misfit(checkpoint, drafter, target),
        hidden_size=checkpoint.config.get("hidden_size"),
        vocab_size=_vocab_size(checkpoint),
        target_layers=_target_layers(checkpoint, drafter),
        made_for_layers=checkpoint.config.get("num_target_layers"),
        made_for=section.target,
        options=_options(checkpoint),
        is_made_for_target=_is_made_for(checkpoint, target),
    )


def _options(checkpoint: Checkpoint) -> dict[str, Any]:
    config = FailFastConfig().with_options({**checkpoint.family.options, **checkpoint.section.options})
    return {name: getattr(config, name) for name in RULE}


def _is_made_for(checkpoint: Checkpoint, target: str | Path | None) -> bool | None:
    return None if target is None or not Path(target).is_dir() else made_for_folder(checkpoint.section, Path(target))


def _vocab_size(checkpoint: Checkpoint) -> int | None:
    config = checkpoint.config
    return (config.get("text_config") or config).get("vocab_size")


def _chunk_per_pass(checkpoint: Checkpoint) -> int | None:
    spec, section = checkpoint.spec, checkpoint.section
    if section.conditioned:
        return section.canvas_length
    if checkpoint.family.block_is_draft or (spec.attention == "anchored_canvas" and spec.block_size):
        return cast(int, spec.block_size) - 1 + spec.shift
    return spec.block_size


def _target_layers(checkpoint: Checkpoint, drafter: DiffusionDrafter | None) -> tuple[int, ...]:
    if checkpoint.section.conditioned:
        return checkpoint.section.source_layers
    states = getattr(drafter, "target_layers", ())
    return tuple(state - 1 for state in states)  # state 0 is the embedding


def _elements(checkpoint: Checkpoint) -> Counter[str]:
    """Elements per dtype over all weight files; from the Hub, without fetching the files; offline, from its cache."""
    counts: Counter[str] = Counter()
    if not Path(checkpoint.name).is_dir() and not is_offline_mode():
        from huggingface_hub import get_safetensors_metadata, parse_safetensors_file_metadata

        access = {key: checkpoint.hub_kwargs[key] for key in ("revision", "token") if key in checkpoint.hub_kwargs}
        if checkpoint.family.weights == "model":
            counts.update(get_safetensors_metadata(checkpoint.name, **access).parameter_count)
        else:
            file = "/".join(filter(None, (checkpoint.hub_kwargs.get("subfolder"), checkpoint.safetensors[0])))
            counts.update(parse_safetensors_file_metadata(checkpoint.name, file, **access).parameter_count)
        return counts
    for path in weight_files(checkpoint):
        for shape, dtype in weight_shapes(path).values():
            size = 1
            for dimension in shape:
                size *= dimension
            counts[dtype] += size
    return counts


def _is_own(checkpoint: Checkpoint) -> bool:
    """Whether it is a checkpoint of this project's own."""
    return not checkpoint.is_listed and "attention" in checkpoint.section.spec


def _has_weights(checkpoint: Checkpoint) -> bool:
    """Whether weights are there, or may be: a Hub repository's are not asked for."""
    return not Path(checkpoint.name).is_dir() or bool(weight_files(checkpoint))


def weight_files(checkpoint: Checkpoint) -> list[str]:
    whole, parts = checkpoint.safetensors
    single = checkpoint.file(whole)
    if single is not None:
        return [single]
    index = checkpoint.file(parts)
    if index is None:
        return []
    names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    return [path for name in names if (path := checkpoint.file(name)) is not None]


def _from_headers(checkpoint: Checkpoint) -> DiffusionDrafter:
    """The drafter as the loader makes it, without weights. Raises what the loader raises."""
    from ..loading import load_checkpoint

    return load_checkpoint(checkpoint, headers_only=True)


def _misfit(checkpoint: Checkpoint, drafter: DiffusionDrafter, target: str | Path) -> str | None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(target), **checkpoint.hub_kwargs)
    text = config.get_text_config(decoder=True)
    if getattr(text, "hidden_size", None) is None or getattr(text, "vocab_size", None) is None:
        raise ValueError(f"{str(target)!r} has no config of a causal LM: it names no `hidden_size` or `vocab_size`.")
    try:
        drafter.check_target(cast("PreTrainedModel", _Outline(config)))
    except ValueError as error:
        return str(error)
    return None


class _Outline:
    """What `DiffusionDrafter.check_target` asks of a target, from its config alone."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config

    def get_input_embeddings(self) -> nn.Embedding:
        from torch import nn

        text = self.config.get_text_config(decoder=True)
        return nn.Embedding(text.vocab_size, text.hidden_size, device="meta")
