"""What packed weights and grouped attention bring on this CPU: forwards of several widths, then answers.

    OMP_WAIT_POLICY=passive python benchmarks/cpu.py --output results/cpu.json

Two copies of SmolLM2-135M-Instruct and the bundled drafter side by side in one process, one of them packed.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from hf_failfast import prepack
from hf_failfast.bench.models import PROMPTS, encode_prompts
from hf_failfast.comparison import Method, compare, summary
from hf_failfast.pair import Pair, load_pair
from hf_failfast.provenance import provenance
from hf_failfast.runners import EagerRunner
from hf_failfast.timing import seconds_by_arm, side_by_side


def forward(runner: EagerRunner, ids: torch.Tensor, width: int) -> Callable[[int], None]:
    """A forward of so many rows behind the first ids (1, n), as many as it is called with."""
    caches = {}

    def run(context: int) -> None:
        if context not in caches:
            caches[context] = runner.new_cache(context + width)
            runner(ids[:, :context], caches[context], rows=1)
        runner(ids[:, :width], caches[context], rows=width)
        caches[context].rollback(context)

    return run


def time_forwards(pairs: dict[str, Pair], widths: list[int], contexts: list[int], repeats: int) -> dict[str, Any]:
    """Median milliseconds by arm, number of rows, and tokens in front of them."""
    ids = torch.randint(1000, (1, max(contexts)), generator=torch.Generator().manual_seed(0))
    milliseconds: dict[str, dict[int, dict[int, float]]] = {}
    for width in widths:
        arms = {}
        for name, pair in pairs.items():
            arms[name], arms[f"{name}, SDPA's attention"] = EagerRunner(pair.target), EagerRunner(pair.target)
            arms[f"{name}, SDPA's attention"].is_grouped = False
        forwards = {name: forward(runner, ids, width) for name, runner in arms.items()}
        for context in contexts:
            [runs] = side_by_side(forwards, [context], repeats, warm_up=context)
            for name, seconds in seconds_by_arm(runs).items():
                found = milliseconds.setdefault(name, {}).setdefault(width, {})
                found[context] = round(1000 * median(seconds), 2)
    return milliseconds


def methods(name: str, pair: Pair) -> dict[str, Method]:
    """Plain and drafted."""

    def drafted(**inputs: Any) -> Any:
        return pair.target.generate(**inputs, assistant_model=pair.drafter, custom_generate="hf_failfast")

    return {f"plain generate, {name}": pair.target.generate, f"hf_failfast, {name}": drafted}


def main(
    output: Annotated[Path, typer.Option(help="JSON file.")],
    dtypes: Annotated[str, typer.Option(help="Comma-separated.")] = "bfloat16,float32",
    rows: Annotated[str, typer.Option(help="Rows of a forward, comma-separated.")] = "1,2,4,8,9,16,32",
    contexts: Annotated[str, typer.Option(help="Tokens in front of the rows, comma-separated.")] = "256,1024",
    prompts: int = len(PROMPTS),
    max_new_tokens: int = 48,
    repeats: Annotated[int, typer.Option(help="Of each answer; forwards are repeated five times as often.")] = 3,
) -> None:
    document: dict[str, Any] = {"max_new_tokens": max_new_tokens, "repeats": repeats}
    widths, lengths = ([int(number) for number in text.split(",")] for text in (rows, contexts))
    for dtype in dtypes.split(","):
        ordinary = load_pair(None, None, getattr(torch, dtype), "cpu")
        packed = copy.deepcopy(ordinary)
        prepack(packed.target, packed.drafter)
        pairs = {"ordinary weights": ordinary, "packed weights": packed}
        forwards = time_forwards(pairs, widths, lengths, 5 * repeats)
        asked = encode_prompts(ordinary.tokenizer, PROMPTS[:prompts], ordinary.target)
        arms = methods("ordinary weights", ordinary) | methods("packed weights", packed)
        results = summary(compare(arms, asked, max_new_tokens, repeats))
        document[dtype] = {"forward_ms": forwards, "results": results}
        print(json.dumps(document[dtype]))
    document |= {"threads": torch.get_num_threads()} | provenance()
    output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
