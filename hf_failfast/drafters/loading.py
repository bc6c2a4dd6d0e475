"""From a checkpoint folder or Hub id to a drafter. Nothing of a checkpoint is ever executed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..config import FailFastConfig
from ..engine.runner_pool import RunnerName, Runners
from .base import DiffusionDrafter
from .bodies.borrowed import SharedBody
from .bodies.dit import DiT, load_dit
from .checkpoints.families import DFLASH, DFLASH_ASSISTANT, DIFFUSION_GEMMA, DIT
from .checkpoints.reading import Checkpoint, read_checkpoint
from .checkpoints.target_fit import MadeFor
from .checkpoints.weights import load_native, load_shared
from .conditioned.canvas import ConditionedDrafter
from .conditioned.dflash import load_dflash, load_dflash_assistant
from .denoising import Denoising
from .diffusion_gemma import load_diffusion_gemma
from .masked.session import DraftingMode, DraftingOptions, MaskedDrafter
from .spec import Alignment, AttentionKind, Noise

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_drafter(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
    attention: AttentionKind | None = None,
    block_size: int | None = None,
    shift: int | bool | None = None,
    mask_token_id: int | None = None,
    noise: Noise | None = None,
    alignment: Alignment | None = None,
    mode: DraftingMode = "fused",
    denoising_steps: int = 1,
    denoising_threshold: float | None = None,
    prefix_block: int | None = None,
    allow_pickle: bool = False,
    runner: RunnerName = "auto",
    **hub_kwargs: Any,
) -> DiffusionDrafter:
    """Loads a diffusion drafter from a checkpoint folder or Hub id.

    How the checkpoint drafts comes from its config and the table of known families (`families.py`), or from the
    keyword arguments, which win: so any causal-LM checkpoint can be tried. See `DrafterSpec` for `attention` to
    `alignment`, `DraftingOptions` for `mode` and `prefix_block`, `Denoising` for `denoising_steps` and
    `denoising_threshold`. `dtype="auto"` keeps the checkpoint's dtype; `device_map` and `hub_kwargs` (`revision`,
    `token`, `cache_dir`, ...) are those of `from_pretrained`. Pickle weights can execute code when they are read, and
    are refused without `allow_pickle`. `runner` says whether forwards, the target's too, are replayed as CUDA graphs
    (see `Runners`).

    Raises:
        ValueError: the checkpoint's kind is unknown, its spec incomplete, or its weights do not fit its config.
    """
    runners = Runners(runner)
    given = {
        "attention": attention,
        "block_size": block_size,
        "shift": None if shift is None else int(shift),
        "mask_token_id": mask_token_id,
        "noise": noise,
        "alignment": alignment,
    }
    given = {key: value for key, value in given.items() if value is not None}
    checkpoint = read_checkpoint(name_or_path, given, hub_kwargs)
    config = FailFastConfig().with_options(checkpoint.section.options)
    options = DraftingOptions(Denoising(denoising_steps, denoising_threshold), mode, prefix_block)
    drafter = _load(checkpoint, config, options, dtype, device_map, allow_pickle)
    drafter.made_for = MadeFor.of(checkpoint.section)
    drafter.runners = runners
    return drafter


def _load(
    checkpoint: Checkpoint,
    config: FailFastConfig,
    options: DraftingOptions,
    dtype: torch.dtype | str,
    device_map: Any,
    allow_pickle: bool,
) -> DiffusionDrafter:
    if checkpoint.body in (DFLASH, DFLASH_ASSISTANT, DIFFUSION_GEMMA):
        if options != DraftingOptions():
            raise ValueError(
                f"{checkpoint.body} drafts in its own way: `mode`, `denoising_*`, `prefix_block` do not fit."
            )
        return _load_own_kind(checkpoint, config, dtype, device_map, allow_pickle)
    model = _load_body(checkpoint, dtype, device_map, allow_pickle)
    section = checkpoint.section
    if section.conditioned:
        if options != DraftingOptions():
            raise ValueError(
                "A conditioned drafter drafts in one pass: `mode`, `denoising_*`, `prefix_block` do not fit."
            )
        assert isinstance(model, SharedBody) and section.canvas_length is not None
        return ConditionedDrafter(model.eval(), checkpoint.spec, section.source_layers, section.canvas_length, config)
    return MaskedDrafter(model.eval(), checkpoint.spec, config, options)


def _load_own_kind(
    checkpoint: Checkpoint,
    config: FailFastConfig,
    dtype: torch.dtype | str,
    device_map: Any,
    allow_pickle: bool,
) -> DiffusionDrafter:
    """The drafters that are no masked drafters."""
    if checkpoint.body == DIFFUSION_GEMMA:
        return load_diffusion_gemma(checkpoint, config, dtype, device_map, allow_pickle)
    # Chunks of one block come from one pass, so that short ones cost the drafter nothing.
    config = config.with_options({} if "chunk_length" in checkpoint.section.options else {"chunk_length": 4})
    if checkpoint.body == DFLASH:
        return load_dflash(checkpoint, config, dtype, device_map)
    return load_dflash_assistant(checkpoint, config, dtype, device_map, allow_pickle)


def _load_body(
    checkpoint: Checkpoint, dtype: torch.dtype | str, device_map: Any, allow_pickle: bool
) -> PreTrainedModel | SharedBody | DiT:
    if checkpoint.body == DIT:
        return load_dit(checkpoint, dtype, device_map)
    if checkpoint.section.shared_embeddings:
        return load_shared(checkpoint, dtype, device_map)
    model = load_native(checkpoint, dtype, device_map, allow_pickle)
    rows = model.get_input_embeddings().weight.shape[0]
    mask_token_id = checkpoint.spec.mask_token_id
    if mask_token_id is not None and mask_token_id >= rows:
        raise ValueError(f"`mask_token_id` must be < {rows}, the drafter's embedding rows, but is {mask_token_id}.")
    return model
