"""What one greedy call of `generate` passes: the files of the package, and the deepest stack between loop and model.

    python -m tools.greedy_call

The bundled drafter on SmolLM2-135M-Instruct, eagerly on a CPU, after a first call that fills every cache.
docs/architecture.md quotes the figures.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers.utils import logging

import hf_failfast
from hf_failfast.pairs import encode_prompt, load_smollm2

PACKAGE = Path(hf_failfast.__file__).parent
LOOP = "failfast_decoding"
STEPS = ("propose", "verify", "accept", "commit")


def file_of(frame: FrameType) -> str | None:
    """The frame's file within the package."""
    path = Path(frame.f_code.co_filename)
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else None


def stack_of(frame: FrameType) -> list[str]:
    """The package's functions between the loop and this frame, outermost first; none outside of the loop."""
    names: list[str] = []
    caller: FrameType | None = frame
    while caller is not None and caller.f_code.co_name != LOOP:
        if (file := file_of(caller)) is not None:
            names.insert(0, f"{file}:{caller.f_code.co_qualname}")
        caller = caller.f_back
    return [] if caller is None else names


def trace(call: Callable[[], Any], is_model: Callable[[FrameType], bool]) -> tuple[list[str], list[str], list[str]]:
    """(files that the call enters, files that its rounds enter, deepest stack between loop and model)."""
    files: set[str] = set()
    in_rounds: set[str] = set()
    deepest: list[str] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal deepest
        if event != "call":
            return
        file = file_of(frame)
        if file is not None:
            files.add(file)
            if any(name.split(":")[-1] in STEPS for name in stack_of(frame)[:1]):
                in_rounds.add(file)
        elif is_model(frame):
            deepest = max(deepest, stack_of(frame), key=len)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return sorted(files), sorted(in_rounds), deepest


def main() -> None:
    logging.disable_progress_bar()
    target, tokenizer = load_smollm2(torch.float32)
    drafter = hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER, dtype=torch.float32)
    ids = encode_prompt(tokenizer, "What is the difference between a comet and an asteroid?")

    def call() -> None:
        hf_failfast.generate(target, ids, assistant_model=drafter, max_new_tokens=24, do_sample=False)

    call()
    models = "LlamaForCausalLM.forward", "LlamaModel.forward"
    files, in_rounds, deepest = trace(call, lambda frame: frame.f_code.co_qualname in models)
    print(f"{len(files)} files, {len(in_rounds)} of them in the rounds:")
    for file in files:
        print(f"  {'round' if file in in_rounds else '     '}  {file}")
    print(f"{len(deepest)} frames between the loop and a model:")
    for name in deepest:
        print(f"  {name}")


if __name__ == "__main__":
    main()
