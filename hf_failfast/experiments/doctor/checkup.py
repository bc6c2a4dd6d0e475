"""What the doctor is asked, checked before a weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from ...config import FailFastConfig
from ...drafters import BUNDLED_DRAFTER
from ...drafters.checkpoints.inspection import Inspection, inspect_checkpoint
from ...pairs import smollm2_folder


@dataclass(frozen=True)
class Checkup:
    """target: None for SmolLM2-135M-Instruct. drafter: None for the bundled one, or for none if a target is named.
    options: FailFast's, where the drafter's own are not wanted.

    drafter_name: the folder or Hub name of the drafter; None if there is none. inspection: of that checkpoint.
    bundled_misfit: without a drafter, why the bundled one does not fit; None if it does.

    Raises ValueError or OSError naming what cannot be examined.
    """

    target: str | None
    drafter: str | None
    prompts: Sequence[str]
    max_new_tokens: int = 64
    repeats: int = 1
    dtype: Any = "auto"
    device: str = "cpu"
    packs: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    drafter_name: str | None = field(init=False)
    inspection: Inspection | None = field(init=False, default=None)
    bundled_misfit: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("`prompts` must hold at least one prompt.")
        FailFastConfig().with_options(self.options)
        folder = str(smollm2_folder()) if self.target is None else self.target
        _check_target(folder)
        name = str(BUNDLED_DRAFTER) if self.drafter is None and self.target is None else self.drafter
        found = inspect_checkpoint(name or BUNDLED_DRAFTER, folder)
        object.__setattr__(self, "drafter_name", name)
        if name is None:
            object.__setattr__(self, "bundled_misfit", found.misfit)
        else:
            object.__setattr__(self, "inspection", found)


def _check_target(folder: str) -> None:
    try:
        config = AutoConfig.from_pretrained(folder)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"The target {folder!r} cannot be read: {reason}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        raise ValueError(f"The target {folder!r} is a `{config.model_type}`, which is no language model.")
