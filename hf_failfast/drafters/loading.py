"""From a checkpoint folder or Hub id to a drafter. Nothing of a checkpoint is ever executed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..config import FailFastConfig
from ..engine.causal_lm import execution_device
from ..engine.runner_pool import RunnerName, RunnerPool
from .base import DiffusionDrafter, DraftRequest
from .bodies.dit import load_dit
from .checkpoints.config_keys import check_config
from .checkpoints.reading import Checkpoint, read_checkpoint
from .checkpoints.target_fit import MadeFor
from .checkpoints.weights import LoadRequest, load_native, load_shared
from .conditioned.canvas import ConditionedDrafter
from .conditioned.dflash import load_dflash, load_dflash2, load_dflash_assistant, load_dspark
from .denoising import Denoising
from .diffusion_gemma import load_diffusion_gemma
from .learning.stored import adapter_file, base_of, put_adapter
from .lora.drafter import load_lora
from .masked.session import DraftingMode, DraftingOptions, MaskedDrafter
from .spec import LEAST_WINDOW, OWN_WINDOW, Alignment, AttentionKind, DrafterSection, Noise

AS_THE_CHECKPOINT_ASKS = DraftingOptions()

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
    drafter_window: int | None = None,
    allow_pickle: bool = False,
    runner: RunnerName = "auto",
    **hub_kwargs: Any,
) -> DiffusionDrafter:
    """Loads a diffusion drafter from a checkpoint folder or Hub id (a LoRA in PEFT's format makes the target one), or
    from a folder of `Learning.save`.

    How the checkpoint drafts comes from its config and the table of known families (`families.py`), or from the
    keyword arguments, which win: so any causal-LM checkpoint can be tried. See `DrafterSpec` for `attention` to
    `alignment`, `DraftingOptions` for `mode` and `prefix_block`, `Denoising` for `denoising_steps` and
    `denoising_threshold`.

    drafter_window: the most tokens of a text that a masked drafter or a conditioned one of our trainer sees, 0 for all
        of it; by default what its
        checkpoint says, and all of it where that says nothing.
    dtype, device_map, hub_kwargs: those of `from_pretrained` (`revision`, `token`, `cache_dir`, ... are the last);
        `dtype="auto"` keeps the checkpoint's.
    allow_pickle: pickle weights can execute code when they are read, and are refused without it.
    runner: whether forwards, the target's too, are replayed as CUDA graphs (see `RunnerPool`).

    Raises:
        ValueError: the checkpoint's kind is unknown, its spec incomplete, or its weights do not fit its config.
    """
    adapter = adapter_file(name_or_path)
    if adapter is not None:
        name_or_path = base_of(adapter)
    given = {
        "attention": attention,
        "block_size": block_size,
        "shift": None if shift is None else int(shift),
        "mask_token_id": mask_token_id,
        "noise": noise,
        "alignment": alignment,
    }
    given = {key: value for key, value in given.items() if value is not None}
    runners = RunnerPool(runner)
    checkpoint = read_checkpoint(name_or_path, given, hub_kwargs)
    options = DraftingOptions(Denoising(denoising_steps, denoising_threshold), mode, prefix_block)
    drafter = load_checkpoint(checkpoint, options, drafter_window, dtype, device_map, allow_pickle)
    drafter.runners = runners
    drafter.source = checkpoint
    if adapter is not None:
        put_adapter(drafter, adapter)
    return drafter


def load_checkpoint(
    checkpoint: Checkpoint,
    options: DraftingOptions = AS_THE_CHECKPOINT_ASKS,
    drafter_window: int | None = None,
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
    allow_pickle: bool = False,
    headers_only: bool = False,
) -> DiffusionDrafter:
    """The drafter of a checkpoint that was understood; see `load_drafter`, and `LoadRequest` for `headers_only`."""
    family, section = checkpoint.family, checkpoint.section
    if checkpoint.is_listed:
        check_config(family, checkpoint.config)
    config = FailFastConfig().with_options({**family.options, **section.options})
    if options != AS_THE_CHECKPOINT_ASKS and not family.takes_drafting_options:
        way = f"{family.body} drafts in its own way"
        if section.conditioned:
            way = "A conditioned drafter drafts in one pass"
        raise ValueError(f"{way}: `mode`, `denoising_*`, `prefix_block` do not fit.")
    window = _window(drafter_window, section)
    load = LOADERS.get(family.body, load_causal_lm)
    drafter = load(LoadRequest(checkpoint, config, options, dtype, device_map, allow_pickle, headers_only))
    if window and not isinstance(drafter, MaskedDrafter | ConditionedDrafter):
        raise ValueError(f"`drafter_window`={window} does not fit {type(drafter).__name__}: it reads all of a text.")
    drafter.window = window
    drafter.made_for = MadeFor.of(section)
    return drafter


def load_drafter_for(target: PreTrainedModel, name_or_path: str | Path, **options: Any) -> DiffusionDrafter:
    """`load_drafter` in the target's dtype, where the target computes. Raises ValueError also if they do not fit."""
    placement = {"dtype": target.dtype, "device_map": execution_device(target)}
    drafter = load_drafter(name_or_path, **placement, **options)
    drafter.start(DraftRequest(target, capacity=1))
    return drafter


def _window(given: int | None, section: DrafterSection) -> int:
    """Raises ValueError on a window that holds no draft."""
    stored = (
        OWN_WINDOW if section.shared_embeddings and section.drafter_window is None else section.drafter_window or 0
    )
    window = stored if given is None else given
    if isinstance(window, bool) or not isinstance(window, int) or (window != 0 and window < LEAST_WINDOW):
        raise ValueError(f"`drafter_window` must be 0 or an integer >= {LEAST_WINDOW}, but is {window!r}.")
    return window


def load_causal_lm(request: LoadRequest) -> MaskedDrafter | ConditionedDrafter:
    """A causal LM of transformers, or layers of our trainer between the target's embedding and head."""
    section, spec = request.checkpoint.section, request.checkpoint.spec
    if not section.shared_embeddings:
        model = load_native(request)
        rows = model.get_input_embeddings().weight.shape[0]
        if spec.mask_token_id is not None and spec.mask_token_id >= rows:
            raise ValueError(
                f"`mask_token_id` must be < {rows}, the drafter's embedding rows, but is {spec.mask_token_id}."
            )
        return MaskedDrafter(model.eval(), spec, request.config, request.options)
    body = load_shared(request).eval()
    if not section.conditioned:
        return MaskedDrafter(body, spec, request.config, request.options)
    assert section.canvas_length is not None  # `DrafterSection` sees to it
    return ConditionedDrafter(body, spec, section.source_layers, section.canvas_length, request.config)


def load_masked_dit(request: LoadRequest) -> MaskedDrafter:
    return MaskedDrafter(load_dit(request).eval(), request.checkpoint.spec, request.config, request.options)


# By `Family.body`, those that `load_causal_lm` does not load.
LOADERS: dict[str, Callable[[LoadRequest], DiffusionDrafter]] = {
    "dflash": load_dflash,
    "dflash2": load_dflash2,
    "dspark": load_dspark,
    "diffusion_gemma": load_diffusion_gemma,
    "dit": load_masked_dit,
    "lora": load_lora,
    "muse_glimmer_assistant": load_dflash_assistant,
}
