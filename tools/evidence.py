"""Accuracy and speed of every decoding method on the tasks that need no hub: writes results/smollm2.json.

    python -m tools.evidence --limit 4      (make evidence)

The pair is SmolLM2-135M-Instruct and the bundled drafter. Every prompt is answered by plain decoding and by the
method, in random order. The autoregressive draft model of transformers' assisted generation is the bundled drafter
itself, read one token per pass: the same weights.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from transformers.utils import logging

from hf_failfast import BUNDLED_DRAFTER
from hf_failfast.eval.model import HFFailFastLM
from hf_failfast.eval.paths import TASKS
from hf_failfast.eval.task import SPEED_FILTER
from hf_failfast.experiments.tables import write
from hf_failfast.measure.metrics import SPEED_METRICS, summarise
from hf_failfast.measure.provenance import provenance
from hf_failfast.measure.records import SpeedRecord
from hf_failfast.pairs import smollm2_folder

RESULT = Path(__file__).parents[1] / "results" / "smollm2.json"
GROUP = "failfast_offline"

# The model arguments of every method; tau, N and N_max are the drafter's own.
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"method": "plain"},
    "prompt_lookup": {"method": "prompt_lookup"},
    "assisted": {"method": "assisted", "assistant": str(BUNDLED_DRAFTER)},
    "fixed": {"method": "fixed", "assistant": str(BUNDLED_DRAFTER)},
    "failfast": {"method": "failfast", "assistant": str(BUNDLED_DRAFTER)},
    "goodput": {"method": "failfast", "assistant": str(BUNDLED_DRAFTER), "length_policy": "goodput"},
}


def evaluate(name: str, limit: int, max_new_tokens: int, dtype: str, prepack: bool = False) -> list[dict[str, Any]]:
    """One row per task, and one of all answers: the task's scores beside the speed metrics."""
    arguments = METHODS[name] | {"compare_plain": name != "plain", "prepack": prepack}
    model = HFFailFastLM(str(smollm2_folder()), device="cpu", dtype=dtype, **arguments)
    results = simple_evaluate(
        model,
        tasks=[GROUP],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        limit=limit,
        gen_kwargs={"max_gen_toks": max_new_tokens},
        apply_chat_template=True,
        confirm_run_unsafe_code=True,
        bootstrap_iters=0,
        device="cpu",
    )
    rows, records = [], []
    for task in results["group_subtasks"][GROUP]:
        speed = [
            sample["filtered_resps"][0] for sample in results["samples"][task] if sample["filter"] == SPEED_FILTER
        ]
        of_task = [SpeedRecord(**record) for record in speed]
        records += of_task
        rows.append({"task": task, "method": name} | _scores(results["results"][task]) | summarise(of_task))
    return [*rows, {"task": "all", "method": name} | summarise(records)]


def _scores(result: dict[str, Any]) -> dict[str, float]:
    """The task's own metrics, without lm-eval's filter names and standard errors."""
    speed = {metric.name for metric in SPEED_METRICS}
    names = {key: key.split(",")[0] for key in result if "," in key and "_stderr" not in key}
    return {name: result[key] for key, name in names.items() if name not in speed}


def main(
    limit: Annotated[int, typer.Option(help="Questions per task.")] = 4,
    max_new_tokens: int = 96,
    float32_limit: Annotated[
        int, typer.Option(help="Questions per task of the check in float32, of another dtype.")
    ] = 2,
    dtype: str = "float32",
    prepack: Annotated[bool, typer.Option(help="Pack the weights, for every method alike.")] = True,
    out: Path = RESULT,
) -> None:
    logging.set_verbosity_error()
    found = {name: evaluate(name, limit, max_new_tokens, dtype, prepack) for name in METHODS}
    rows = [row for of_method in found.values() for row in of_method]
    exact = found["failfast"][-1]
    if dtype != "float32":
        exact = evaluate("failfast", float32_limit, max_new_tokens, "float32")[-1]
    setting = {
        "target": "SmolLM2-135M-Instruct",
        "drafter": BUNDLED_DRAFTER.name,
        "assistant": "the bundled drafter, one token per pass",
        "dtype": dtype,
        "prepacked": prepack,
        "limit": limit,
        "max_new_tokens": max_new_tokens,
    }
    identical = {"answers": exact["answers"], "identical": exact["identical"]}
    document = {"setting": setting, "rows": rows, "float32": identical} | provenance(torch.device("cpu"))
    write(out, document)
    print(out)


if __name__ == "__main__":
    typer.run(main)
