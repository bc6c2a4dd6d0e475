"""The package's `evaluate` modules, loaded from its own folder: no hub."""

from functools import lru_cache

import evaluate

from .paths import EVALUATE_MODULES


@lru_cache
def load_module(name: str) -> evaluate.EvaluationModule:
    """`pass_at_k`, `rouge` or `paired_speedup`; equals `evaluate.load(<its folder>)`."""
    return evaluate.load(str(EVALUATE_MODULES / name), keep_in_memory=True)
