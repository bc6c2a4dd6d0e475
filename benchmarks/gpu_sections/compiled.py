"""Compiled layers against the model's own, both captured, for families that the fused decoder does not take."""

from time import perf_counter
from typing import Any

from transformers import PreTrainedModel

from hf_failfast.engine.cuda.compiled_layers import CompiledLayers
from hf_failfast.experiments.floor import bytes_per_forward

from .machine import Machine
from .passes import forward_pass

# OLMo 2 of 1B; Gemma 3 of 1B, whose layers are of two kinds.
MODELS: dict[str, dict[str, Any]] = {
    "olmo2": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 8192,
        "vocab_size": 100352,
    },
    "gemma3_text": {
        "hidden_size": 1152,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 6912,
        "vocab_size": 262144,
        "sliding_window": 512,
    },
}
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 500,
}


def measure_compiled(machine: Machine) -> dict[str, Any]:
    """By family and number of rows: milliseconds of a pass after 1,024 tokens with the model's own layers and with
    compiled ones, both captured, the memory floor, and the seconds of the first pass, which compiles."""
    return {name: _measure(machine, name) for name in (MODELS if machine.is_gpu else list(MODELS)[:1])}


def _measure(machine: Machine, name: str) -> dict[str, Any]:
    model: PreTrainedModel = machine.model_of(name, MODELS[name] if machine.is_gpu else TINY)
    compiled, found = CompiledLayers(), {}
    for rows in (1, 16, 64) if machine.is_gpu else (16,):
        own = forward_pass(machine, model, "captured_layers", rows)
        start = perf_counter()
        forward = forward_pass(machine, model, "captured", rows, compiled=compiled)
        machine.wait()
        first = perf_counter() - start
        if compiled.failure is not None:
            return {"not compiled": compiled.failure}
        found[f"{rows} rows"] = {
            "captured_layers_ms": 1e3 * machine.seconds(own),
            "compiled_ms": 1e3 * machine.seconds(forward),
            "first_pass_seconds": first,
        }
        if machine.bandwidth:
            floor = bytes_per_forward(model, machine.context + rows) / machine.bandwidth
            found[f"{rows} rows"]["floor_ms"] = 1e3 * floor
    return found | {"artifacts": len(compiled.artifacts)}
