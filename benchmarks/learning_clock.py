"""What learning does to the wall clock: requests answered with a drafter that learns and with one that does not.

    python benchmarks/learning_clock.py

The bundled pair in float32 with packed weights, greedy. Of each kind of prompt a new learner answers one request after
the other, as a server would, with its steps between rounds (`learning_share`) inside the time of the request; the same
drafter without learning answers each request, too, and which of the two comes first is drawn anew.
"""

import random
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from learning import KINDS, PROMPTS, interval
from store import RESULTS, store
from transformers import PreTrainedModel
from transformers.utils import logging

import hf_failfast
from hf_failfast import Learning
from hf_failfast.drafters import DiffusionDrafter
from hf_failfast.measure.provenance import provenance
from hf_failfast.measure.timing import WARM_UP_TOKENS, in_random_order
from hf_failfast.pairs import SMOLLM2, encode_prompt, load_smollm2


def answer(target: PreTrainedModel, drafter: DiffusionDrafter, new: int, ids: torch.Tensor) -> Any:
    """The output of a request."""
    return target.generate(
        ids,
        assistant_model=drafter,
        custom_generate="hf_failfast",
        do_sample=False,
        max_new_tokens=new,
        return_dict_in_generate=True,
    )


def main(
    output: Path = RESULTS / "learning_clock.json",
    max_new_tokens: int = 64,
    limit: Annotated[int, typer.Option(help="Requests of each kind.")] = 40,
    learning_share: float = 0.1,
) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    target, tokenizer = load_smollm2(torch.float32)
    fixed, own = [hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER, dtype=torch.float32) for _ in range(2)]
    packed = hf_failfast.prepack(target, fixed, own)
    order = random.Random(0)
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        learner = Learning(own, learning_share=learning_share)
        drafters = {"without": fixed, "with": learner}
        arms = {name: partial(answer, target, drafter, max_new_tokens) for name, drafter in drafters.items()}
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        rounds: dict[str, list[float]] = {name: [] for name in arms}
        tokens = identical = 0
        lines = (PROMPTS / f"{kind}.txt").read_text(encoding="utf-8").splitlines()[:limit]
        for number, line in enumerate(lines):
            ids = encode_prompt(tokenizer, line)
            if not number:
                answer(target, fixed, WARM_UP_TOKENS, ids)
            texts = {}
            for name, found, taken in in_random_order(arms, ids, 1, order):
                seconds[name].append(taken)
                rounds[name].append(found.speculation.rounds)
                texts[name] = found.sequences
            identical += torch.equal(texts["with"], texts["without"])
            tokens += texts["with"].shape[1] - ids.shape[1]
        stats = learner.statistics
        kinds[kind] = {
            "requests": len(lines),
            "tokens": tokens,
            "identical": identical,
            "seconds_without": round(sum(seconds["without"]), 1),
            "seconds_with": round(sum(seconds["with"]), 1),
            "speed": interval("ratio", seconds["without"], seconds["with"]),
            "speed_second_half": interval("ratio", *(seconds[name][len(lines) // 2 :] for name in arms)),
            "tokens_per_round": interval("ratio", rounds["without"], rounds["with"]),
            "learned_steps": stats.learned_steps,
            "share_of_time": round(stats.learning_seconds / (stats.learning_seconds + stats.decoding_seconds), 3),
            "resets": stats.resets,
        }
        learner.reset()
        print(kind, kinds[kind], flush=True)
    packed.undo()
    settings = {"target": SMOLLM2, "drafter": hf_failfast.BUNDLED_DRAFTER.name, "dtype": "float32", "packed": True}
    counts = {"max_new_tokens": max_new_tokens, "learning_share": learning_share}
    store(settings | counts | {"kinds": kinds} | provenance(), output)


if __name__ == "__main__":
    typer.run(main)
