"""Ratios over prompts, speedups above all, with their bootstrap confidence intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES_AT_ONCE = 500


@dataclass(frozen=True)
class PairedSpeedup:
    """A speedup over paired prompts and the limits of its percentile bootstrap interval.

    speedup: ratio of tokens per second, each the sum of tokens over the sum of seconds; where both methods write the
        same tokens this is the ratio of the summed times.
    macro_speedup: mean over prompts of the prompt's own ratio, so that short answers count as much as long ones.
    """

    speedup: float
    speedup_low: float
    speedup_high: float
    macro_speedup: float
    macro_speedup_low: float
    macro_speedup_high: float
    prompts: int


def paired_speedup(
    seconds: Sequence[float],
    tokens: Sequence[int],
    plain_seconds: Sequence[float],
    plain_tokens: Sequence[int],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedSpeedup:
    """Compares a method with plain decoding on the same prompts; entry i of every sequence is prompt i.

    Prompts are resampled with replacement, both runs of a prompt together. One prompt gives an interval of no width.
    Raises ValueError on no prompts, unequal lengths, values that are not > 0, or a level outside (0, 1).
    """
    columns = {"seconds": seconds, "tokens": tokens, "plain_seconds": plain_seconds, "plain_tokens": plain_tokens}
    _check(columns, confidence, resamples)
    values = np.array(list(columns.values()), dtype=np.float64)  # (4, prompts)
    ratios = _speedup(values)
    prompts = values.shape[1]
    micro, macro = [], []
    for weights in _resampled(prompts, resamples, seed):
        micro.append(_speedup(values @ weights.T))
        macro.append(weights @ ratios / prompts)
    low, high = _limits(micro, confidence)
    macro_low, macro_high = _limits(macro, confidence)
    speedup = float(_speedup(values.sum(axis=1)))
    return PairedSpeedup(speedup, low, high, float(ratios.mean()), macro_low, macro_high, prompts)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(ratio, low, high) of the summed numerators to the summed denominators, prompts resampled with replacement.

    Entry i of both is prompt i. Raises ValueError as `paired_speedup` does.
    """
    _check({"numerators": numerators, "denominators": denominators}, confidence, resamples)
    values = np.array([numerators, denominators], dtype=np.float64)  # (2, prompts)
    ratios = []
    for weights in _resampled(values.shape[1], resamples, seed):
        above, below = values @ weights.T
        ratios.append(above / below)
    above, below = values.sum(axis=1)
    return float(above / below), *_limits(ratios, confidence)


def _resampled(prompts: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each prompt is drawn, (count, prompts) at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        count = min(_RESAMPLES_AT_ONCE, resamples - start)
        yield generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=count)


def _limits(values: Sequence[np.ndarray], confidence: float) -> tuple[float, float]:
    low, high = np.percentile(np.concatenate(values), [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)


def _speedup(values: np.ndarray) -> np.ndarray:
    """Ratio of tokens per second from (4, ...) seconds, tokens, plain seconds, plain tokens."""
    seconds, tokens, plain_seconds, plain_tokens = values
    return (tokens / seconds) / (plain_tokens / plain_seconds)


def _check(columns: dict[str, Sequence[float]], confidence: float, resamples: int) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise ValueError(f"The columns must have one entry per prompt, at least one, but have {lengths}.")
    for name, column in columns.items():
        if not all(value > 0 for value in column):
            raise ValueError(f"`{name}` must be > 0 for every prompt, but its smallest is {min(column)!r}.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be in (0, 1), but is {confidence!r}.")
    if resamples < 1:
        raise ValueError(f"`resamples` must be >= 1, but is {resamples!r}.")
