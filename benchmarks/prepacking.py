"""What packed weights bring to plain and to drafted decoding: forwards of several widths, then answers.

    OMP_WAIT_POLICY=passive python benchmarks/prepacking.py --output results/prepacking.json

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
from transformers import PreTrainedModel

from hf_failfast import prepack
from hf_failfast.bench.models import PROMPTS, encode_prompts
from hf_failfast.comparison import Method, compare, summary
from hf_failfast.pair import Pair, load_pair
from hf_failfast.prepacking import is_prepacked
from hf_failfast.provenance import provenance
from hf_failfast.runners import EagerRunner
from hf_failfast.timing import seconds_by_arm, side_by_side


def forward(target: PreTrainedModel, ids: torch.Tensor) -> Callable[[int], None]:
    """A forward of so many rows behind the ids (1, n)."""
    runner = EagerRunner(target)
    cache = runner.new_cache(2 * ids.shape[1])
    runner(ids, cache, rows=1)

    def run(num_rows: int) -> None:
        runner(ids[:, :num_rows], cache, rows=num_rows)
        cache.rollback(ids.shape[1])

    return run


def time_forwards(
    pairs: dict[str, Pair], widths: list[int], context: int, repeats: int
) -> dict[str, dict[int, float]]:
    """Median milliseconds by number of rows."""
    ids = torch.randint(1000, (1, context), generator=torch.Generator().manual_seed(0))
    forwards = {name: forward(pair.target, ids) for name, pair in pairs.items()}
    milliseconds: dict[str, dict[int, float]] = {name: {} for name in forwards}
    for width, runs in zip(widths, side_by_side(forwards, widths, repeats, warm_up=max(widths)), strict=True):
        for name, seconds in seconds_by_arm(runs).items():
            milliseconds[name][width] = round(1000 * median(seconds), 2)
    return milliseconds


def methods(pair: Pair) -> dict[str, Method]:
    """Plain and drafted, by name."""

    def drafted(**inputs: Any) -> Any:
        return pair.target.generate(**inputs, assistant_model=pair.drafter, custom_generate="hf_failfast")

    suffix = ", packed" if is_prepacked(pair.target) else ""
    return {f"plain generate{suffix}": pair.target.generate, f"hf_failfast{suffix}": drafted}


def main(
    output: Annotated[Path, typer.Option(help="JSON file.")],
    dtypes: Annotated[str, typer.Option(help="Comma-separated.")] = "bfloat16,float32",
    rows: Annotated[str, typer.Option(help="Rows of a forward, comma-separated.")] = "1,2,4,8,9,16,32",
    context: Annotated[int, typer.Option(help="Tokens in front of the timed rows.")] = 256,
    prompts: int = len(PROMPTS),
    max_new_tokens: int = 48,
    repeats: Annotated[int, typer.Option(help="Of each answer; forwards are repeated ten times as often.")] = 3,
) -> None:
    document: dict[str, Any] = {"context": context, "max_new_tokens": max_new_tokens, "repeats": repeats}
    for dtype in dtypes.split(","):
        plain = load_pair(None, None, getattr(torch, dtype), "cpu")
        packed = copy.deepcopy(plain)
        prepack(packed.target, packed.drafter)
        widths = [int(count) for count in rows.split(",")]
        forwards = time_forwards({"plain": plain, "packed": packed}, widths, context, 10 * repeats)
        asked = encode_prompts(plain.tokenizer, PROMPTS[:prompts], plain.target)
        results = summary(compare(methods(plain) | methods(packed), asked, max_new_tokens, repeats))
        document[dtype] = {"forward_ms": forwards, "results": results}
        print(json.dumps(document[dtype]))
    document |= {"threads": torch.get_num_threads()} | provenance()
    output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
