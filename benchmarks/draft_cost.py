"""What a draft of K tokens costs: one pass of a diffusion drafter, or K passes of an autoregressive one with the same
layers and head, behind the same context. The weights do not matter; the bundled drafter's are used.

    python benchmarks/draft_cost.py --output results/draft_cost.json
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers.utils import logging

import hf_failfast
from hf_failfast.drafters.bodies.borrowed import SharedBody
from hf_failfast.drafters.masked.session import MaskedDrafter
from hf_failfast.engine.runner import EagerRunner
from hf_failfast.measure.provenance import provenance
from hf_failfast.measure.timing import seconds_by_arm, side_by_side
from hf_failfast.pairs import load_smollm2


@torch.no_grad()
def main(
    output: Annotated[Path, typer.Option(help="JSON file.")],
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
        runner(torch.randint(1000, (1, context)), caches[name], rows=1)

    def passes(name: str, count: int, ids: torch.Tensor) -> None:
        for _ in range(count):
            runners[name](ids, caches[name], rows=ids.shape[1])
        caches[name].rollback(context)

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
    output.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    typer.run(main)
