"""The decoding methods that the benchmark times."""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from transformers import CompileConfig, PreTrainedModel, StaticCache

from ..compatibility import CACHE, COMPILES_ASSISTED
from ..drafters import DiffusionDrafter
from .comparison import BASELINE, OURS, Method

ASSISTED, LOOKUP = "HF assisted", "HF prompt lookup"
# Ours in each mode, by the options of `generate`.
FIXED, GOODPUT = f"{OURS}, fixed drafts", f"{OURS}, goodput"


def hf_arguments(assistant: PreTrainedModel | None) -> dict[str, dict[str, Any]]:
    """The arguments of `generate` of transformers' own methods, plain `generate` first.

    assistant: an autoregressive draft model for transformers' assisted generation.
    """
    methods: dict[str, dict[str, Any]] = {BASELINE: {}}
    if assistant is not None:
        methods[ASSISTED] = {"assistant_model": assistant}
    return methods | {LOOKUP: {"prompt_lookup_num_tokens": 10}}


def arms(
    target: PreTrainedModel,
    drafter: DiffusionDrafter,
    options: dict[str, Any],
    assistant: PreTrainedModel | None = None,
    compiled: Mapping[str, Method] | None = None,
) -> dict[str, Method]:
    """Every method that can run here, plain `generate` first.

    assistant: see `hf_arguments`. compiled: of `compiled_arms`.
    """
    config = drafter.config.with_options(options)

    def method(**arguments: Any) -> Method:
        return lambda **inputs: target.generate(**inputs, **arguments)

    ours = {"assistant_model": drafter, "custom_generate": "hf_failfast"}
    methods: dict[str, Method] = {}
    for name, arguments in hf_arguments(assistant).items():
        methods[name] = method(**arguments)
        if compiled is not None and compiled_name(name) in compiled:
            methods[compiled_name(name)] = compiled[compiled_name(name)]
    methods[OURS] = method(**ours, **options)
    methods[FIXED] = method(**ours, **options | {"max_draft_length": config.chunk_length})
    methods[GOODPUT] = method(**ours, length_policy="goodput")
    return methods


def compiled_name(name: str) -> str:
    """The name of a method of transformers whose forwards are compiled."""
    return f"{name}, compiled"


def compiled_arms(
    target: PreTrainedModel,
    prompts: Sequence[torch.Tensor],
    max_new_tokens: int,
    assistant: PreTrainedModel | None = None,
) -> tuple[dict[str, Method], dict[str, dict[str, Any]]]:
    """transformers' own methods under `torch.compile`, captured as graphs on CUDA, without those that cannot be
    compiled; and what came of compiling each, for JSON.

    transformers before 5.24 compiles plain `generate` only. The caches have room for every prompt, so that one
    compilation serves all.
    """
    methods: dict[str, Method] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, arguments in hf_arguments(assistant).items():
        if name == BASELINE or COMPILES_ASSISTED:
            method, found[compiled_name(name)] = _compiled(target, prompts, max_new_tokens, arguments)
            if method is not None:
                methods[compiled_name(name)] = method
    return methods, found


def _compiled(
    target: PreTrainedModel, prompts: Sequence[torch.Tensor], max_new_tokens: int, arguments: dict[str, Any]
) -> tuple[Method | None, dict[str, Any]]:
    text_config = target.config.get_text_config(decoder=True)
    room = max(prompt.shape[1] for prompt in prompts) + max_new_tokens
    compile_config = CompileConfig()
    compile_config._compile_all_devices = True  # `generate` by itself compiles on accelerators only

    def method(**inputs: Any) -> Any:
        cache = StaticCache(config=text_config, max_cache_len=room)
        return target.generate(**inputs, **arguments, **{CACHE: cache}, compile_config=compile_config)

    started = perf_counter()
    try:
        # Long enough for verifications of several widths, each of which may be compiled anew.
        method(inputs=prompts[0], max_new_tokens=min(max_new_tokens, 24 if arguments else 3), do_sample=False)
    except Exception as error:  # whatever a compiler, or its absence, may raise
        first_paragraph = " ".join(str(error).partition("\n\n")[0].split())
        return None, {"error": f"{type(error).__name__}: {first_paragraph}"}
    return method, {"first_call_seconds": round(perf_counter() - started, 1)}
