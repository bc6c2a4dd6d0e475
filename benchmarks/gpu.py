"""Everything that a GPU has to answer, section by section: is it right, how fast is it, what is a round.

    python benchmarks/gpu.py                              # all sections that this commit has not measured yet
    python benchmarks/gpu.py --sections passes,bundled    # these, again
    python benchmarks/gpu.py --cpu-check                  # the same code with tiny shapes and a stand-in for graphs

A section takes less than a minute on a large GPU (32B needs 80 GB). Its result goes into one file with the hardware in
its name as soon as it is there, so a run that is cut off goes on where it was. Models are made on the device from
configs, with random bfloat16 weights: passes cost what they cost with trained ones. Rounds are therefore replays, with
the paper's mean acceptance length instead of their own. A failure is recorded in its section's place. The last line
printed is one JSON document.
"""

import functools
import gc
import json
import re
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from gpu_sections.compiled import measure_compiled
from gpu_sections.correctness import compare_generations
from gpu_sections.end_to_end import measure_smollm2
from gpu_sections.kernel_times import measure_kernels
from gpu_sections.machine import Machine, measure_machine
from gpu_sections.memory import measure_memory
from gpu_sections.passes import measure_liger, measure_passes
from gpu_sections.quantised import measure_quantised
from gpu_sections.rounds import measure_batches, measure_pair
from store import RESULTS, store

from hf_failfast import __version__
from hf_failfast.measure.provenance import provenance

# Names for several sections at once.
GROUPS = {
    "passes": ("1.5B", "7B", "14B", "32B"),
    "rounds": ("7B", "14B", "32B"),
    "bundled": ("smollm2",),
}


def sections(machine: Machine) -> dict[str, Callable[[], Any]]:
    """By name, in the order in which they are of use. `7B` and larger are passes, and rounds with the 1.5B drafter."""
    drafter = functools.cache(lambda: machine.model("1.5B"))
    found: dict[str, Callable[[], Any]] = {
        "machine": lambda: measure_machine(machine),
        "1.5B": lambda: measure_passes(machine, drafter()),
        "7B": lambda: measure_pair(machine, drafter(), "7B"),
        "generations": lambda: compare_generations(machine),
        "smollm2": lambda: measure_smollm2(machine),
        "kernels": lambda: measure_kernels(machine),
        "memory": lambda: measure_memory(machine),
        "batch": lambda: measure_batches(machine, drafter(), "7B"),
        "compiled": lambda: measure_compiled(machine),
        "quantised": lambda: measure_quantised(machine, "7B"),
        "14B": lambda: measure_pair(machine, drafter(), "14B"),
        "32B": lambda: measure_pair(machine, drafter(), "32B"),
        "1.5B, Liger": lambda: measure_liger(machine, machine.model("1.5B")),
    }
    if not machine.is_gpu:  # a tiny model has one size
        for name in ("14B", "32B", "1.5B, Liger"):
            del found[name]
    return found


def asked_for(text: str, known: dict[str, Callable[[], Any]]) -> list[str]:
    """The sections that a list names, groups resolved. Raises ValueError on others."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in known and name not in GROUPS]
    if unknown:
        raise ValueError(f"`--sections` must be of {[*known, *GROUPS]}, but has {unknown}.")
    wanted = {each for name in names for each in GROUPS.get(name, (name,))}
    return [name for name in known if name in wanted]


def is_measured(section: Any, commit: str | None) -> bool:
    """Whether a stored section is a result of this very code."""
    if not isinstance(section, dict) or {"error", "skipped"} & set(section):
        return False
    return commit is not None and section.get("measured", {}).get("commit") == commit


def main(
    sections_: Annotated[
        str | None, typer.Option("--sections", help="Names, or `passes`, `rounds`, `bundled`; separated by commas.")
    ] = None,
    budget_seconds: Annotated[float, typer.Option(help="No section starts later than this.")] = 540.0,
    cpu_check: Annotated[bool, typer.Option(help="Tiny shapes on the CPU: whether the script works.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where to store the result.")] = None,
) -> None:
    device = torch.device("cpu" if cpu_check or not torch.cuda.is_available() else "cuda")
    machine = Machine(device, perf_counter() + budget_seconds)
    hardware = re.sub(r"\W+", "-", torch.cuda.get_device_name() if machine.is_gpu else "cpu").lower()
    path = output or (RESULTS / f"gpu-{hardware}.json" if machine.is_gpu else None)
    stored: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.is_file() else {}
    source = provenance(device)
    known = sections(machine)
    names = asked_for(sections_, known) if sections_ else list(known)
    report = stored | source
    for name in names:
        if sections_ is None and is_measured(stored.get(name), source["commit"]):
            continue
        if perf_counter() > machine.deadline:
            report.setdefault(name, {"skipped": f"more than {budget_seconds} s had passed"})
            continue
        report[name] = run(known[name]) | {"measured": _origin(source)}
        print(name, json.dumps(report[name], indent=1), flush=True)
        if path is not None:
            store(report, path)
        gc.collect()
        if machine.is_gpu:
            torch.cuda.empty_cache()
    if path is not None:
        store(report, path)
    else:
        print(json.dumps(report))


def run(section: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The section's result, or its error, and how long it took."""
    start = perf_counter()
    try:
        found = section()
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}", "where": traceback.format_exc(limit=-3)}
    return found | {"seconds": perf_counter() - start}


def _origin(source: dict[str, Any]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": source["commit"],
        "package": __version__,
        "torch": source["versions"]["torch"],
        "transformers": source["versions"]["transformers"],
    }


if __name__ == "__main__":
    typer.run(main)
