"""What a draft of K tokens costs: one pass of a diffusion drafter, or K passes of an autoregressive one with the same
layers and head, after the same context. The weights do not matter; the bundled drafter's are used.

    python benchmarks/draft_cost.py
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from store import RESULTS, store
from transformers.utils import logging

import hf_failfast
from hf_failfast.drafters.bodies.borrowed import SharedBody
from hf_failfast.drafters.masked.session import MaskedDrafter
from hf_failfast.engine.runner import EagerRunner
from hf_failfast.engine.window import Window
from hf_failfast.measure.provenance import provenance
from hf_failfast.measure.timing import seconds_by_arm, side_by_side
from hf_failfast.pairs import load_smollm2


@torch.no_grad()
def main(
    output: Path = RESULTS / "draft_cost.json",
    length: Annotated[int, typer.Option(help="K, tokens of a draft.")] = 8,
    context: int = 256,
    repeats: int = 30,
) -> None:
    logging.disable_progress_bar()
    target, _ = load_smollm2(torch.bfloat16)
    drafter = hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER, dtype=torch.bfloat16)
    assert isinstance(drafter, MaskedDrafter) and isinstance(drafter.model, SharedBody)
    runners = {"drafter": EagerRunner(drafter.model.attach(target)), "target": EagerRunner(target)}
    caches = {}
    for name, runner in runners.items():
        caches[name] = runner.new_cache(context + length + 1)
        runner.run(Window(torch.randint(1000, (1, context)), [0], read=1), caches[name])

    def passes(name: str, count: int, ids: torch.Tensor) -> None:
        width = ids.shape[1]
        for index in range(count):
            runners[name].run(Window(ids, [context + index * width], read=width), caches[name])

    actions: dict[str, Callable[[torch.Tensor], None]] = {
        "diffusion draft": lambda ids: passes("drafter", 1, ids[:, :length]),
        "autoregressive draft": lambda ids: passes("drafter", length, ids[:, :1]),
        "verification": lambda ids: passes("target", 1, ids),
        "plain token": lambda ids: passes("target", 1, ids[:, :1]),
    }
    ids = torch.randint(1000, (1, length + 1))
    [runs] = side_by_side(actions, [ids], repeats, warm_up=ids)
    seconds = seconds_by_arm(runs)
    medians = {name: round(1000 * statistics.median(seconds[name]), 2) for name in actions}
    document = {"milliseconds": medians, "length": length, "context": context, "repeats": repeats, **provenance()}
    store(document, output)


if __name__ == "__main__":
    typer.run(main)
