"""ROUGE-1, ROUGE-2 and ROUGE-L F-measures, computed by the rouge_score package."""

from typing import Any

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer

_DESCRIPTION = "ROUGE (Lin 2004): F-measures of unigrams, bigrams and the longest common subsequence, mean over texts."

_ARGUMENTS = """\
predictions: one text each. references: one text each.
use_stemmer: compare Porter stems instead of words, default False.
"""

_TYPES = ("rouge1", "rouge2", "rougeL")


class Rouge(evaluate.Metric):
    """`evaluate.load(<this folder>).compute(predictions=["a b"], references=["a c"])`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_ARGUMENTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: Any, references: Any, use_stemmer: bool = False) -> dict[str, float]:
        scorer = RougeScorer(_TYPES, use_stemmer=use_stemmer)
        scores = [scorer.score(target, text) for target, text in zip(references, predictions, strict=True)]
        return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in _TYPES}
