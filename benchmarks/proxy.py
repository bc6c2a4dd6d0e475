"""A pair so small that a forward is nearly all overhead, as on a fast GPU: what does the loop itself cost?

    OMP_NUM_THREADS=1 python benchmarks/proxy.py

The target has 8 layers of width 64; the draft model is its first 2 layers, and the other 6 add so little that both
agree on about 83 % of the tokens. It is read as a drafter of one token per pass, five passes per round (K = 5), so
that transformers' assisted generation can run the same model with the same five tokens. The last line is one JSON
document.
"""

import json
from functools import partial
from statistics import median
from typing import Annotated, Any

import torch
import typer
from tiny_pair import tiny_pair
from transformers import PreTrainedModel
from transformers.utils import logging

import hf_failfast
from hf_failfast.measure.provenance import setting
from hf_failfast.measure.timing import seconds_by_arm, side_by_side

VOCAB_SIZE = 1000
DRAFT_LENGTH = 5


def pair() -> tuple[PreTrainedModel, PreTrainedModel, hf_failfast.DiffusionDrafter]:
    """The tiny pair; its assistant drafts as many tokens as the drafter, whatever it thinks of them."""
    target, assistant, drafter = tiny_pair(VOCAB_SIZE + 1, intermediate_size=256, initializer_range=0.1)
    assistant.generation_config.num_assistant_tokens = DRAFT_LENGTH
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    return target, assistant, drafter


def time_batch(methods: dict[str, dict[str, Any]], target: PreTrainedModel, num_rows: int, repeats: int) -> Any:
    """Median over the repeats of plain `generate`'s seconds over the method's, run beside each other."""
    prompt = torch.randint(VOCAB_SIZE, (num_rows, 64), generator=torch.Generator().manual_seed(num_rows))
    arguments = {"max_new_tokens": 96, "do_sample": False, "return_dict_in_generate": True}
    arguments["attention_mask"] = torch.ones_like(prompt)
    arms = {name: partial(target.generate, **arguments, **extra) for name, extra in ({"plain": {}} | methods).items()}
    [runs] = map(list, side_by_side(arms, [prompt], repeats, warm_up=prompt))
    outputs, seconds = {run.arm: run.output for run in runs}, seconds_by_arm(runs)
    records = {}
    for name in methods:
        stats = outputs[name].get("speculation")
        ratios = [plain / ours for plain, ours in zip(seconds["plain"], seconds[name], strict=True)]
        records[name] = {
            "speedup": round(median(ratios), 3),
            "identical": torch.equal(outputs[name].sequences, outputs["plain"].sequences),
            "acceptance_rate": None if stats is None else round(stats.acceptance_rate, 3),
        }
    return records


def main(
    batches: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,4,8",
    repeats: Annotated[int, typer.Option(min=1)] = 13,
) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    target, assistant, drafter = pair()
    ours = {"assistant_model": drafter, "custom_generate": "hf_failfast"}
    always = {"confidence_threshold": 0.0, "chunk_length": 1, "max_draft_length": DRAFT_LENGTH}
    methods = {"hf_failfast": ours | always, "hf_failfast, goodput": ours | {"length_policy": "goodput"}}
    results = {}
    for num_rows in map(int, batches.split(",")):
        others = {"HF assisted": {"assistant_model": assistant}} if num_rows == 1 else {}
        results[num_rows] = time_batch(methods | others, target, num_rows, repeats)
        for name, record in results[num_rows].items():
            print(f"batch {num_rows}  {record['speedup']:.2f}x  {name}  {record}")
    print(json.dumps({"results": results, "repeats": repeats} | setting(target)))


if __name__ == "__main__":
    typer.run(main)
