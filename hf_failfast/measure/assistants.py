"""Autoregressive draft models: of one's own, or a diffusion drafter read as one."""

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ..drafters import DiffusionDrafter, load_drafter
from ..drafters.bodies.borrowed import SharedBody
from ..drafters.masked.session import MaskedDrafter
from ..drafters.spec import SECTION
from ..engine.causal_lm import execution_device


def load_assistant(name: str, target: PreTrainedModel) -> PreTrainedModel:
    """The draft model of transformers' assisted generation, in the target's dtype and on its device.

    name: a causal LM, or a drafter of this package that reads as one. Raises ValueError on another drafter: as a
    checkpoint most of them would load, with random weights where they borrow the target's.
    """
    if not hasattr(AutoConfig.from_pretrained(name), SECTION):
        placement: dict[str, Any] = {"dtype": target.dtype, "device_map": {"": execution_device(target)}}
        return AutoModelForCausalLM.from_pretrained(name, **placement).eval()
    drafter = load_drafter(name, dtype=target.dtype, device_map=execution_device(target))
    return autoregressive_twin(drafter, target)


def is_autoregressive(drafter: DiffusionDrafter) -> bool:
    """Whether the drafter's first token of a chunk is an autoregressive model's.

    A causal canvas with shift 1 attends causally to known tokens, and the last of them predicts the next: without
    masks it is an autoregressive model, of the same weights and training.
    """
    return isinstance(drafter, MaskedDrafter) and (drafter.spec.attention, drafter.spec.shift) == ("causal_canvas", 1)


def autoregressive_twin(drafter: DiffusionDrafter, target: PreTrainedModel) -> PreTrainedModel:
    """The drafter as an ordinary causal LM, by reference: its layers, with the target's embedding and head where it
    borrows them. Raises ValueError on a drafter that does not read as one."""
    if not is_autoregressive(drafter):
        raise ValueError("This drafter cannot be read autoregressively: that takes a causal canvas with shift 1.")
    assert isinstance(drafter, MaskedDrafter)
    if not isinstance(drafter.model, SharedBody):
        return drafter.model
    drafter.model.attach(target)  # refuses a target of another width
    with torch.device("meta"):
        twin: PreTrainedModel = AutoModelForCausalLM.from_config(drafter.model.config, dtype=target.dtype)
    decoder = copy.copy(drafter.model.decoder)
    decoder._modules = dict(decoder._modules)
    decoder.set_input_embeddings(target.get_input_embeddings())
    setattr(twin, twin.base_model_prefix, decoder)
    twin.set_output_embeddings(target.get_output_embeddings())
    return twin.eval()
