"""Everything that a GPU has to answer, in one run: are graphs and kernels right, how fast are they, what is a round.

    python benchmarks/gpu.py                  # at most 9 minutes on one large GPU; 32B needs 80 GB
    python benchmarks/gpu.py --cpu-check      # the same code with tiny shapes and a stand-in for graphs

Models are made on the device from configs, with random bfloat16 weights: passes cost what they cost with trained ones.
Rounds are therefore replays, with the paper's mean acceptance length instead of their own. Each section is run as long
as there is time, and a failure is recorded in its place. The last line printed is one JSON document, which is stored
with the hardware in its name.
"""

import functools
import gc
import json
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from gpu_sections.correctness import compare_generations
from gpu_sections.end_to_end import measure_smollm2
from gpu_sections.kernel_times import measure_kernels
from gpu_sections.machine import Machine, measure_machine
from gpu_sections.passes import measure_liger, measure_passes
from gpu_sections.rounds import measure_pair
from store import RESULTS, store

from hf_failfast.measure.provenance import provenance


def sections(machine: Machine) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "machine", lambda: measure_machine(machine)
    yield "kernels", lambda: measure_kernels(machine)
    yield "generations", lambda: compare_generations(machine)
    drafter = functools.cache(lambda: machine.model("1.5B"))
    yield "1.5B", lambda: measure_passes(machine, drafter())
    for name in ("7B", "14B", "32B") if machine.is_gpu else ("7B",):
        yield name, lambda name=name: measure_pair(machine, drafter(), name)
    if machine.is_gpu:
        yield "smollm2", lambda: measure_smollm2(machine)
        yield "1.5B, Liger", lambda: measure_liger(machine, drafter())


def main(
    budget_seconds: Annotated[float, typer.Option(help="No section starts later than this.")] = 540.0,
    cpu_check: Annotated[bool, typer.Option(help="Tiny shapes on the CPU: whether the script works.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where to store the result.")] = None,
) -> None:
    device = torch.device("cpu" if cpu_check or not torch.cuda.is_available() else "cuda")
    machine = Machine(device, perf_counter() + budget_seconds)
    report: dict[str, Any] = provenance(device)
    for name, section in sections(machine):
        if perf_counter() > machine.deadline:
            report[name] = {"skipped": f"more than {budget_seconds} s had passed"}
            continue
        start = perf_counter()
        try:
            report[name] = section()
        except Exception as error:
            report[name] = {"error": f"{type(error).__name__}: {error}", "where": traceback.format_exc(limit=-3)}
        report[name]["seconds"] = perf_counter() - start
        print(name, json.dumps(report[name], indent=1), flush=True)
        gc.collect()
        if machine.is_gpu:
            torch.cuda.empty_cache()
    if machine.is_gpu or output is not None:
        hardware = re.sub(r"\W+", "-", torch.cuda.get_device_name() if machine.is_gpu else "cpu").lower()
        store(report, output or RESULTS / f"gpu-{hardware}.json")
    else:
        print(json.dumps(report))


if __name__ == "__main__":
    typer.run(main)
