"""A target and its drafter, loaded together; without names, the pair that needs no hub."""

from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from . import BUNDLED_DRAFTER
from .cli.output.progress import waiting
from .drafters import DiffusionDrafter, load_drafter
from .smollm2 import load_smollm2

SMOLLM2 = "SmolLM2-135M-Instruct"


class Pair(NamedTuple):
    """names: of target and drafter, as results tell them."""

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    drafter: DiffusionDrafter
    names: dict[str, str]


def load_pair(target: str | None, drafter: str | None, dtype: Any, device: str) -> Pair:
    """Any target and drafter; SmolLM2-135M-Instruct and the bundled drafter where neither is named.

    Raises ValueError if only one of them is named or if they do not fit.
    """
    if (target is None) != (drafter is None):
        raise ValueError("`target` and `drafter` must be given together, or neither for SmolLM2 and its drafter.")
    with waiting("Loading the models"):
        if target is None:
            model, tokenizer = load_smollm2(torch.bfloat16 if dtype == "auto" else dtype)
            model.to(device)
        else:
            model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype).to(device).eval()
            tokenizer = AutoTokenizer.from_pretrained(target)
        loaded = load_drafter(drafter or BUNDLED_DRAFTER, dtype=model.dtype, device_map=model.device)
        loaded.start(model, capacity=1, eos_token_ids=None)  # refuses a drafter that does not fit this target
    names = {"target": target or SMOLLM2, "drafter": drafter or BUNDLED_DRAFTER.name}
    return Pair(model, tokenizer, loaded, names)
