"""How much of a drafted call lies outside the two models' forwards.

    python benchmarks/overhead.py

SmolLM2-135M-Instruct and the bundled drafter on the demo's prompts, on a CPU (a GPU's forwards return before they are
done). What is not a forward: windows, masks, confidences, acceptance, the text, and `generate` around it all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import typer
from store import RESULTS, store
from transformers.utils import logging

import hf_failfast
from hf_failfast.engine.runner import EagerRunner
from hf_failfast.measure.provenance import provenance
from hf_failfast.pairs import DEMO_PROMPTS, encode_prompt, load_smollm2


@contextmanager
def timed_forwards() -> Iterator[list[float]]:
    """Seconds of every forward of target and drafter inside the context."""
    forward = EagerRunner._forward
    seconds: list[float] = []

    def timed(*arguments: Any) -> Any:
        started = perf_counter()
        outputs = forward(*arguments)
        seconds.append(perf_counter() - started)
        return outputs

    EagerRunner._forward = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        EagerRunner._forward = forward  # type: ignore[method-assign]


def main(output: Path = RESULTS / "overhead.json", max_new_tokens: int = 64, repeats: int = 3) -> None:
    logging.disable_progress_bar()
    target, tokenizer = load_smollm2(torch.bfloat16)
    drafter = hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER, dtype=torch.bfloat16)
    found: dict[str, list[float]] = {"share_outside_forwards": [], "milliseconds_outside_per_round": []}
    for prompt in DEMO_PROMPTS * repeats:
        ids = encode_prompt(tokenizer, prompt)
        with timed_forwards() as forwards:
            started = perf_counter()
            result = target.generate(
                ids,
                assistant_model=drafter,
                custom_generate="hf_failfast",
                max_new_tokens=max_new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
            )
            seconds = perf_counter() - started
        outside = seconds - sum(forwards)
        found["share_outside_forwards"].append(outside / seconds)
        found["milliseconds_outside_per_round"].append(1e3 * outside / result.speculation.rounds)
    medians = {name: round(median(values), 4) for name, values in found.items()}
    document = medians | {"max_new_tokens": max_new_tokens, "repeats": repeats, **provenance()}
    store(document, output)


if __name__ == "__main__":
    typer.run(main)
