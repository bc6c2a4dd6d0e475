"""Speedups with their intervals, and the metrics of records."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_failfast.measure.bootstrap import paired_speedup, ratio_interval
from hf_failfast.measure.metrics import SPEED_METRICS, summarise
from hf_failfast.measure.records import SpeedRecord


class TestPairedSpeedup:
    def test_sums_against_means(self) -> None:
        """A long prompt at 1x and a short one at 4x: the sums say little over 1, the mean of ratios 2.5."""
        result = paired_speedup([10.0, 0.25], [100, 10], [10.0, 1.0], [100, 10])
        assert result.speedup == pytest.approx(11 / 10.25)
        assert result.macro_speedup == pytest.approx(2.5)

    def test_is_a_ratio_of_rates_where_lengths_differ(self) -> None:
        assert paired_speedup([1.0], [20], [1.0], [10]).speedup == pytest.approx(2.0)

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=2, max_size=8))
    def test_interval_holds_what_prompts_show(self, times: list[tuple[float, float]]) -> None:
        seconds, plain = zip(*times, strict=True)
        tokens = [10] * len(times)
        result = paired_speedup(seconds, tokens, plain, tokens, resamples=200)
        ratios = [b / a for a, b in times]
        assert min(ratios) - 1e-9 <= result.speedup_low <= result.speedup_high <= max(ratios) + 1e-9
        assert result.macro_speedup_low <= result.macro_speedup_high

    def test_interval_covers_the_truth(self) -> None:
        """Of 60 samples of 30 prompts with a true ratio of 1.5, about 95 % of the intervals must hold it."""
        import numpy as np

        source = np.random.default_rng(1)
        held = 0
        for _ in range(60):
            plain = source.gamma(4.0, 1.0, 30)
            seconds = plain / 1.5 * source.lognormal(0, 0.2, 30) / np.exp(0.02)
            tokens = [10] * 30
            result = paired_speedup(list(seconds), tokens, list(plain), tokens, resamples=300)
            held += result.speedup_low <= 1.5 <= result.speedup_high
        assert held >= 50

    def test_a_ratio_of_sums_covers_the_truth(self) -> None:
        """Tokens a round, for one: of 60 samples of 30 prompts about 95 % of the intervals must hold the true 2."""
        import numpy as np

        source = np.random.default_rng(2)
        held = 0
        for _ in range(60):
            rounds = source.integers(10, 60, 30)
            tokens = rounds * source.choice([1.5, 2.0, 2.5], 30)
            ratio, low, high = ratio_interval(tokens.tolist(), rounds.tolist(), resamples=300)
            assert low <= ratio <= high and ratio == pytest.approx(tokens.sum() / rounds.sum())
            held += low <= 2 <= high
        assert 50 <= held < 60
        with pytest.raises(ValueError, match="`denominators` must be > 0"):
            ratio_interval([1], [0])

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            (([], [], [], []), "at least one"),
            (([1.0], [1, 2], [1.0], [1]), "one entry per prompt"),
            (([0.0], [1], [1.0], [1]), "`seconds` must be > 0"),
        ],
    )
    def test_bad_columns(self, columns: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            paired_speedup(*columns)


def test_rows_that_a_method_cannot_tell_are_left_out() -> None:
    record = SpeedRecord("plain", 2.0, 10, 100.0)
    assert summarise([record]) == {
        "answers": 1,
        "tokens_per_second": 5.0,
        "new_tokens": 10.0,
        "peak_memory_mib": 100.0,
    }


def test_metric_names_are_distinct() -> None:
    names = [metric.name for metric in SPEED_METRICS]
    assert len(set(names)) == len(names)
