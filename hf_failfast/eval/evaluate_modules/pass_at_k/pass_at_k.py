"""pass@k of programs, each run in a subprocess with limits."""

from collections.abc import Sequence
from math import comb
from typing import Any

import datasets
import evaluate

from hf_failfast.eval.subprocesses import runs_through

_DESCRIPTION = """\
The unbiased estimator of pass@k (Chen et al. 2021, arXiv 2107.03374, equation 1): with c of n samples right, the
probability that k samples drawn without replacement hold a right one.
"""

_ARGUMENTS = """\
predictions: per problem, the list of candidate programs.
references: per problem, the test code that follows a candidate.
k: the k's, default [1]. timeout_seconds, memory_mib: limits of one run, default 10 s and 1024 MiB.
confirm_run_unsafe_code: must be True: the candidates are executed.
"""


class PassAtK(evaluate.Metric):
    """`evaluate.load(<this folder>).compute(predictions=[["a = 1"]], references=["assert a"], ...)`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_ARGUMENTS,
            features=datasets.Features({"predictions": datasets.Sequence(text), "references": text}),
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        k: Sequence[int] = (1,),
        timeout_seconds: float = 10.0,
        memory_mib: int = 1024,
        confirm_run_unsafe_code: bool = False,
    ) -> dict[str, float]:
        if not confirm_run_unsafe_code:
            raise ValueError("`confirm_run_unsafe_code` must be True: the candidate programs are executed.")
        fewest = min(len(candidates) for candidates in predictions)
        if not all(1 <= size <= fewest for size in k):
            raise ValueError(f"`k` must be in 1..{fewest}, the candidates of every problem, but is {list(k)}.")
        counts = []
        for candidates, test in zip(predictions, references, strict=True):
            runs = [runs_through(f"{program}\n{test}", timeout_seconds, memory_mib) for program in candidates]
            counts.append((len(runs), sum(runs)))
        return {
            f"pass@{size}": sum(1 - comb(n - right, size) / comb(n, size) for n, right in counts) / len(counts)
            for size in k
        }
