"""Every strategy beside plain `generate` and transformers' prompt lookup, by the clock, on several kinds of prompts.

    python benchmarks/strategies.py

The bundled pair in float32 with packed weights, greedy. Plain `generate` with packed weights is what speedups are
over; with ordinary weights it stands beside it. All methods answer each prompt in one process, in random order, after
a warm-up; a method's speedup over a kind of prompts has a bootstrap interval over the prompts. What goodput measures
and learns it keeps from prompt to prompt, as in a process that serves.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from store import RESULTS, store
from transformers.utils import logging

import hf_failfast
from hf_failfast.drafters import DiffusionDrafter
from hf_failfast.measure.bootstrap import paired_speedup
from hf_failfast.measure.methods import PLAIN, Method, drafted, prompt_lookup
from hf_failfast.measure.provenance import provenance
from hf_failfast.measure.records import SpeedRecord
from hf_failfast.measure.timing import Prompts, time_answers
from hf_failfast.pairs import SMOLLM2, encode_prompt, load_smollm2

HARBOUR = (
    "The harbour master keeps a list of all ships that enter the bay. Each line has the name of the ship, the flag, "
    "the cargo and the hour of arrival. On Monday came the Aurora with timber, the Borealis with salt, and the Corvus "
    "with coal. On Tuesday came the Delphin with cotton and the Esperanza with coffee."
)
AREA = """\
def area(width, height):
    return width * height

def volume(width, height, depth):
    return width * height * depth

def surface(width, height, depth):
    return 2 * (width * height + width * depth + height * depth)
"""
KINDS = {
    "open": (
        "What is the difference between a comet and an asteroid?",
        "Explain to a child why the sky is blue.",
        "Give three reasons to learn to swim.",
        "Describe a market in a small town.",
    ),
    "code": (
        "Write a Python function that checks whether a number is prime.",
        "Write a Python class for a bank account with deposit and withdraw.",
        "Write a Python function that counts the words of a file.",
        "Write an SQL query that finds the ten best customers.",
    ),
    "sums": (
        "A box holds 12 pencils. How many pencils are there in 7 boxes? Explain step by step.",
        "A train travels 60 miles in 1.5 hours. What is its average speed? Explain step by step.",
        "Tom has 20 apples and gives away a quarter of them. How many are left? Explain step by step.",
        "A shirt costs 40 dollars and is reduced by 15 percent. What does it cost now? Explain step by step.",
    ),
    "lists": (
        "List ten countries in Europe with their capitals.",
        "List the planets of the solar system with one fact about each.",
        "List eight vegetables and their colours.",
        "List the months of the year with the number of their days.",
    ),
    "copies": (
        f"Repeat this text word for word:\n\n{HARBOUR}",
        f"Here is some code:\n\n{AREA}\nWrite the same code again, with a docstring for each function.",
        f"Summarise this text in two sentences:\n\n{HARBOUR}",
        f"Correct the spelling of this text and write it again:\n\n{HARBOUR.replace('which', 'wich')}",
    ),
}
CHAINS = {"draft_tree": 0, "draft_lookup": 0, "draft_reuse": False}
STRATEGIES: dict[str, dict[str, Any]] = {
    "default": {},
    "tail": {"draft_lookup": 8},
    "tree": {"draft_tree": 16},
    "goodput, chains": {"length_policy": "goodput"} | CHAINS,
    "goodput": {"length_policy": "goodput"},
}


def methods_of(drafter: DiffusionDrafter) -> list[Method]:
    ours = [drafted(drafter, drafter.config.with_options(options), name) for name, options in STRATEGIES.items()]
    return [PLAIN, prompt_lookup(), *ours]


def row_of(records: list[SpeedRecord]) -> dict[str, Any]:
    """The speedup over plain decoding with its interval, and the counts of one method on a kind of prompts."""
    columns = [(each.seconds, each.new_tokens, each.plain_seconds, each.plain_tokens) for each in records]
    found = paired_speedup(*zip(*columns, strict=True))  # type: ignore[arg-type]
    counts = {
        name: sum(getattr(each.stats, name) for each in records)
        for name in ("rounds", "drafter_passes", "drafted", "nodes_verified", "lookup_accepted")
        if records[0].stats is not None
    }
    return {
        "speedup": round(found.speedup, 3),
        "low": round(found.speedup_low, 3),
        "high": round(found.speedup_high, 3),
        "tokens": sum(each.new_tokens for each in records),
        "identical": sum(bool(each.identical) for each in records),
    } | counts


def main(
    output: Path = RESULTS / "strategies.json",
    max_new_tokens: int = 48,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    prompts: Annotated[int, typer.Option(help="Of each kind, at most.")] = 4,
) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    target, tokenizer = load_smollm2(torch.float32)
    ordinary, _ = load_smollm2(torch.float32)
    drafter = hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER, dtype=torch.float32)
    packed = hf_failfast.prepack(target, drafter)
    arms = {method.name: partial(method.run, target) for method in methods_of(drafter)}
    arms["plain, ordinary weights"] = partial(PLAIN.run, ordinary)
    kinds: dict[str, Any] = {}
    for kind, texts in KINDS.items():
        asked = [Prompts.greedy(encode_prompt(tokenizer, text), max_new_tokens) for text in texts[:prompts]]
        records = time_answers(arms, target, asked, repeats)
        kinds[kind] = {name: row_of(of_method) for name, of_method in records.items() if name != PLAIN.name}
        print(kind, {name: row["speedup"] for name, row in kinds[kind].items()}, flush=True)
    packed.undo()
    settings = {"target": SMOLLM2, "drafter": hf_failfast.BUNDLED_DRAFTER.name, "dtype": "float32", "packed": True}
    counts = {"max_new_tokens": max_new_tokens, "repeats": repeats, "prompts": prompts}
    store(settings | counts | {"kinds": kinds} | provenance(), output)


if __name__ == "__main__":
    typer.run(main)
