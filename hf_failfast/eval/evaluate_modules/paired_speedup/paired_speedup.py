"""Paired speedup of a decoding method over plain decoding, with its bootstrap interval."""

from dataclasses import asdict
from typing import Any

import datasets
import evaluate

from hf_failfast.measure.bootstrap import paired_speedup

_DESCRIPTION = """\
Compares two decoding methods timed on the same prompts. `speedup` is the ratio of tokens per second, sums over sums;
`macro_speedup` the mean of the prompts' own ratios; `_low` and `_high` bound the percentile bootstrap interval over
prompts, both runs of a prompt resampled together.
"""

_ARGUMENTS = """\
predictions: one (seconds, tokens) pair per prompt, of the method.
references: one (seconds, tokens) pair per prompt, of plain decoding.
confidence: level of the interval, default 0.95. resamples: default 10,000. seed: default 0.
"""


class PairedSpeedupMetric(evaluate.Metric):
    """`evaluate.load(<this folder>).compute(predictions=[(0.5, 20)], references=[(1.0, 20)])`."""

    def _info(self) -> evaluate.MetricInfo:
        pair = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_ARGUMENTS,
            features=datasets.Features({"predictions": pair, "references": pair}),
        )

    def _compute(
        self, predictions: Any, references: Any, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
    ) -> dict[str, float]:
        seconds, tokens = zip(*predictions, strict=True)
        plain_seconds, plain_tokens = zip(*references, strict=True)
        result = paired_speedup(
            seconds, tokens, plain_seconds, plain_tokens, confidence=confidence, resamples=resamples, seed=seed
        )
        return asdict(result)
