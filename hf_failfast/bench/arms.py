"""The decoding methods that the benchmark times."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from transformers import CompileConfig, PreTrainedModel, StaticCache

from ..comparison import BASELINE, OURS, Method
from ..drafters import DiffusionDrafter

# Ours in each mode, by the options of `generate`.
FIXED, GOODPUT = f"{OURS}, fixed drafts", f"{OURS}, goodput"
COMPILED = f"{BASELINE}, compiled"


def arms(
    target: PreTrainedModel,
    drafter: DiffusionDrafter,
    options: dict[str, Any],
    assistant: PreTrainedModel | None = None,
    compiled: Method | None = None,
) -> dict[str, Method]:
    """Every method that can run here, plain `generate` first.

    assistant: an autoregressive draft model for transformers' assisted generation. compiled: of `compiled_arm`.
    """
    config = drafter.config.with_options(options)

    def method(**arguments: Any) -> Method:
        return lambda **inputs: target.generate(**inputs, **arguments)

    ours = {"assistant_model": drafter, "custom_generate": "hf_failfast"}
    methods = {BASELINE: method()}
    if compiled is not None:
        methods[COMPILED] = compiled
    if assistant is not None:
        methods["HF assisted"] = method(assistant_model=assistant)
    methods["HF prompt lookup"] = method(prompt_lookup_num_tokens=10)
    methods[OURS] = method(**ours, **options)
    methods[FIXED] = method(**ours, **options | {"max_draft_length": config.chunk_length})
    methods[GOODPUT] = method(**ours, length_policy="goodput")
    return methods


def compiled_arm(
    target: PreTrainedModel, prompts: Sequence[torch.Tensor], max_new_tokens: int
) -> tuple[Method | None, dict[str, Any]]:
    """Plain `generate` under `torch.compile`, captured as a graph on CUDA; and what came of compiling it, for JSON.

    Its cache has room for every prompt, so that one compilation serves all. None where it cannot be compiled.
    """
    text_config = target.config.get_text_config(decoder=True)
    room = max(prompt.shape[1] for prompt in prompts) + max_new_tokens
    compile_config = CompileConfig()
    compile_config._compile_all_devices = True  # `generate` by itself compiles on accelerators only

    def method(**inputs: Any) -> Any:
        cache = StaticCache(config=text_config, max_cache_len=room)
        return target.generate(**inputs, past_key_values=cache, compile_config=compile_config)

    started = perf_counter()
    try:
        method(inputs=prompts[0], max_new_tokens=3, do_sample=False)
    except Exception as error:  # whatever a compiler, or its absence, may raise
        first_paragraph = " ".join(str(error).partition("\n\n")[0].split())
        return None, {"error": f"{type(error).__name__}: {first_paragraph}"}
    return method, {"first_call_seconds": round(perf_counter() - started, 1)}
