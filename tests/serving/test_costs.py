"""Costs from a server's steps."""

import random

import pytest

from hf_failfast.serving.costs import LEAST_STEPS, StepCosts


def filled(draft: tuple[float, float], verify: tuple[float, float], num_rows: int = 3, seed: int = 0) -> StepCosts:
    costs, draw = StepCosts(), random.Random(seed)
    for _ in range(60):
        count = draw.randint(0, 12)
        costs.add_draft(num_rows, count, (draft[0] + draft[1] * count) * draw.uniform(0.98, 1.02))
        costs.add_step(num_rows, count, (verify[0] + verify[1] * count) * draw.uniform(0.98, 1.02))
    return costs


def test_lines_are_found() -> None:
    costs = filled((2.0, 0.1), (10.0, 0.5)).measure(3, 100)
    assert costs.draft[0][1] == pytest.approx(2.0, rel=0.05) and costs.draft[1][1] == pytest.approx(3.6, rel=0.05)
    assert costs.verify[0][1] == pytest.approx(10.0, rel=0.05) and costs.verify[1][1] == pytest.approx(18.0, rel=0.05)


def test_a_slope_is_never_negative() -> None:
    costs = filled((2.0, -0.1), (10.0, -0.5)).measure(3, 100)
    assert costs.verify[0][1] == costs.verify[1][1] > 0


def test_batch_sizes_are_apart() -> None:
    costs = filled((2.0, 0.1), (10.0, 0.5), num_rows=3)
    assert costs.is_known(3) and costs.is_known(4) and not costs.is_known(2) and not costs.is_known(5)


def test_one_length_tells_no_slope() -> None:
    costs = StepCosts()
    for _ in range(10 * LEAST_STEPS):
        costs.add_draft(1, 4, 1.0)
        costs.add_step(1, 4, 1.0)
    assert not costs.is_known(1)


def test_old_load_is_forgotten() -> None:
    costs = filled((2.0, 0.1), (10.0, 0.5))
    for count in range(400):
        costs.add_step(3, count % 13, 20.0)
    assert costs.measure(3, 100).verify[0][1] == pytest.approx(20.0, rel=0.05)
