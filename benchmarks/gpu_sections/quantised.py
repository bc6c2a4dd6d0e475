"""Passes of quantised targets: captured, or the reason why not."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_failfast.engine.cuda.eligibility import obstacle
from hf_failfast.experiments.floor import bytes_per_forward

from .machine import Machine
from .passes import forward_pass


def measure_quantised(machine: Machine, name: str) -> dict[str, Any]:
    """Milliseconds of a pass in 4 bits (NF4) and in 8, by rows, and the memory floor of its fewer bytes."""
    found: dict[str, Any] = {}
    for kind in ("4 bits", "8 bits", "8 bits, outliers"):
        model = quantise(machine.model(name), kind)
        reason = obstacle(model)
        if reason is not None:
            found[kind] = {"not captured": reason}
            continue
        found[kind] = {}
        for rows in (1, 16):
            floor = bytes_per_forward(model, machine.context + rows) / machine.bandwidth if machine.bandwidth else None
            times = {
                f"{way}_ms": 1e3 * machine.seconds(forward_pass(machine, model, way, rows))
                for way in ("eager", "captured")
            }
            found[kind][f"{rows} rows"] = times | ({} if floor is None else {"floor_ms": 1e3 * floor})
    return found


def quantise(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    """The model with the products of its layers in bitsandbytes, as transformers makes them; the head stays."""
    import bitsandbytes as bnb

    for module in list(model.model.modules()):
        for name, linear in list(module.named_children()):
            if not isinstance(linear, nn.Linear):
                continue
            sizes = (linear.in_features, linear.out_features, linear.bias is not None)
            weight = linear.weight.data
            if kind == "4 bits":
                new = bnb.nn.Linear4bit(*sizes, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta")
                new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
            else:
                threshold = 6.0 if "outliers" in kind else 0.0
                new = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=threshold, device="meta")
                new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
            new.bias = linear.bias
            setattr(module, name, new.to(weight.device).eval())
    return model
