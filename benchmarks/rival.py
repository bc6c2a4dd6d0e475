"""A diffusion drafter beside an autoregressive one of the same layers, data and training time, each in its own loop:
this package's, and transformers' assisted generation.

    python benchmarks/equal_time.py --data DATA --variants "standalone;autoregressive" --keep kept --output times.json
    OMP_NUM_THREADS=1 python benchmarks/rival.py --data DATA --drafter kept/standalone --rival kept/autoregressive

Both draft for SmolLM2-135M-Instruct's answers to prompts that no training saw, in float32 with packed weights. The
rival's head is the target's whole one, as transformers has it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from store import RESULTS, store
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_failfast import load_drafter, prepack
from hf_failfast.drafters import DiffusionDrafter
from hf_failfast.measure.bootstrap import paired_speedup, ratio_interval
from hf_failfast.measure.methods import PLAIN, Method, assisted, drafted, load_assistant
from hf_failfast.measure.provenance import provenance
from hf_failfast.measure.records import SpeedRecord
from hf_failfast.measure.timing import Prompts, time_answers
from hf_failfast.pairs import SMOLLM2, load_smollm2
from hf_failfast.policies.confidence import FixedLength
from hf_failfast.training.config import DataConfig
from hf_failfast.training.data.unseen import ANSWER_TOKENS, unseen_examples

MOST = (2, 4)  # tokens of the rival's drafts; it ends one sooner where it is unsure, as transformers has it


def methods(drafter: DiffusionDrafter, rivals: Sequence[PreTrainedModel]) -> dict[str, Method]:
    """Plain decoding first. rivals: the same one for each entry of MOST and once more, as each has its settings."""
    *limited, own = rivals
    policies = {"default rule": "confidence", "whole drafts of 8": FixedLength(8)}
    found = {"plain": PLAIN}
    for name, policy in policies.items():
        found[f"diffusion, {name}"] = drafted(drafter, drafter.config.with_options({"length_policy": policy}))
    for count, rival in zip(MOST, limited, strict=True):
        found[f"autoregressive, at most {count}"] = assisted(rival, count)
    return found | {"autoregressive, default rule": assisted(own)}


def row(name: str, found: Sequence[SpeedRecord], plain: Sequence[SpeedRecord]) -> dict[str, Any]:
    """Speedup over plain decoding with its interval, and of drafting the tokens and drafter passes a round."""
    tokens, seconds = [each.new_tokens for each in found], [each.seconds for each in found]
    speedup = paired_speedup(seconds, tokens, [each.seconds for each in plain], [each.new_tokens for each in plain])
    shown = {"speedup": speedup.speedup, "low": speedup.speedup_low, "high": speedup.speedup_high}
    shown["identical"] = sum(bool(each.identical) for each in found) / len(found)
    if found is not plain:
        rounds = [each.rounds or 0 for each in found]
        shown["tokens_per_round"] = ratio_interval(tokens, rounds)[0]
        shown["passes_per_round"] = sum(each.drafter_passes or 0 for each in found) / sum(rounds)
    return {"method": name} | {key: round(value, 4) for key, value in shown.items()}


def compared(target: PreTrainedModel, methods: dict[str, Method], prompts: list[Prompts], repeats: int) -> list[Any]:
    """A row for each method; all are timed in random order on each prompt."""
    arms = {name: lambda each, method=method: method.run(target, each) for name, method in methods.items()}
    records = time_answers(arms, target, prompts, repeats)
    return [row(name, found, records["plain"]) for name, found in records.items()]


def main(
    data: Annotated[Path, typer.Option(help="Data folder of `hf-failfast train`.")],
    drafter: Annotated[Path, typer.Option(help="Folder of the diffusion drafter.")],
    rival: Annotated[Path, typer.Option(help="Folder of the autoregressive one.")],
    output: Path = RESULTS / "rival.json",
    every: Annotated[int, typer.Option(help="The unseen prompts, each n-th of them.")] = 8,
    repeats: int = 2,
) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    target, tokenizer = load_smollm2(torch.float32)
    examples = unseen_examples(target, tokenizer, DataConfig(), data, SMOLLM2)[::every]
    prompts = [Prompts.greedy(each.tokens[None, : each.prompt_length], ANSWER_TOKENS) for each in examples]
    diffusion = load_drafter(drafter, dtype=torch.float32)
    rivals = [load_assistant(str(rival), target) for _ in (*MOST, None)]
    with prepack(target, diffusion, *rivals):
        rows = compared(target, methods(diffusion, rivals), prompts, repeats)
    store({"rows": rows, "prompts": len(prompts), "repeats": repeats, **provenance()}, output)


if __name__ == "__main__":
    typer.run(main)
