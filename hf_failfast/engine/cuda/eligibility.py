"""Whether a model's forwards can be captured, and whether what was captured is still of the same model."""

import torch

from ..causal_lm import CausalLM, attention_name, has_foreign_hooks
from ..positions import rope_change, table_grows


def fingerprint(model: CausalLM) -> tuple[object, ...]:
    """What a graph fixes of a model: the addresses of its weights, and the switches that its forward reads."""
    state: list[object] = [attention_name(model)]
    for module in model.modules():
        tensors = (*module._parameters.values(), *module._buffers.values())
        state += [tensor.data_ptr() for tensor in tensors if tensor is not None]
        # LoRA (peft) switches adapters on and off in its layers.
        if hasattr(type(module), "merged"):
            state += [str(getattr(module, name)) for name in ("active_adapters", "disable_adapters", "merged")]
    return tuple(state)


def obstacle(model: CausalLM) -> str | None:
    """Why this model's forwards cannot be captured; None if no reason is known before the capture."""
    attention = attention_name(model)
    modules = list(model.modules())
    devices = {tensor.device for module in modules for tensor in module.parameters(recurse=False)}
    if attention not in ("sdpa", "eager", None):  # None: a body of ours, which takes a mask
        return f"the attention implementation {attention!r} takes no mask of its own"
    config = model.config.get_text_config(decoder=True)
    change = rope_change(config)
    if change is not None and change.kind == "dynamic":
        return "its rotary embeddings are computed anew as the text grows"
    if table_grows(config):
        return "its table of positions is replaced as the text grows"
    if len(devices) > 1:
        return f"the model is spread over {sorted(map(str, devices))}"
    if any(module.training for module in modules):
        return "the model is in training mode"
    if any(module._compiled_call_impl is not None or "_orig_mod" in module._modules for module in modules):
        return "the model is compiled"
    if any("_hf_hook" in vars(module) or has_foreign_hooks(module) for module in modules):
        return "the model has forward hooks, which a replay would skip"
    if any(_finds_outliers(module) for module in modules):
        return "its 8-bit layers look for outlier columns in every forward (`llm_int8_threshold` > 0)"
    return None


def _finds_outliers(module: torch.nn.Module) -> bool:
    """Whether a layer of bitsandbytes reads from the GPU which columns it leaves in 16 bits. Its other layers, 8-bit
    without that and 4-bit, launch kernels and no more."""
    return getattr(getattr(module, "state", None), "threshold", 0.0) > 0.0
