"""Every loss against numbers computed by hand."""

import math

import pytest
import torch
from training_support import random_examples, tiny_target

from hf_failfast.training.batches import CanvasPlan, collate, draft_index, step_generator
from hf_failfast.training.config import TrainingConfig
from hf_failfast.training.losses import (
    IGNORE,
    expected_accepted_length,
    focal_cross_entropy,
    position_weights,
    reach_weights,
    soft_label_divergence,
    weighted_cross_entropy,
    weighted_regression,
)
from hf_failfast.training.model import CanvasDrafter
from hf_failfast.training.objective import HeldOut, draft_outputs, training_loss


def logits_of(probabilities: list[list[list[float]]]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_position_decay() -> None:
    assert position_weights(3, decay=2.0).tolist() == pytest.approx([1.0, math.exp(-0.5), math.exp(-1.0)])
    assert position_weights(3, decay=0).tolist() == [1.0, 1.0, 1.0]


def test_weighted_cross_entropy() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0], [5.0, 0.0]])
    labels = torch.tensor([1, 0, IGNORE])
    loss = weighted_cross_entropy(logits, labels, torch.tensor([3.0, 1.0, 9.0]))
    assert loss.item() == pytest.approx((3 * math.log(4 / 3) + math.log(2)) / 4)


def test_cross_entropy_without_any_label_is_zero() -> None:
    loss = weighted_cross_entropy(torch.randn(2, 3), torch.tensor([IGNORE, IGNORE]), torch.ones(2))
    assert loss.item() == 0


def test_weighted_regression() -> None:
    output, wanted = torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.tensor([[0.5, 0.0], [1.0, 1.0]])
    # Squares below 1 are halved, larger errors lose 0.5: rows 0.0625 and 0.75.
    loss = weighted_regression(output, wanted, torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((0.0625 + 3 * 0.75) / 4)


def test_focal_loss_is_the_cross_entropy_at_the_first_miss() -> None:
    canvases = [
        [[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]],  # right, wrong (0.4 for its label), not looked at
        [[0.1, 0.9], [0.5, 0.5], [0.5, 0.5]],  # wrong at once (0.1)
        [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]],  # all right: no part in the mean
        [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]],  # its second position has no label, which ends it
    ]
    labels = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 1, 1], [0, IGNORE, 0]])
    loss = focal_cross_entropy(logits_of(canvases), labels)
    assert loss.item() == pytest.approx((-math.log(0.4) - math.log(0.1)) / 2)


def test_expected_accepted_length() -> None:
    canvases = [[[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]], [[0.5, 0.5], [0.4, 0.6], [0.9, 0.1]]]
    labels = torch.tensor([[0, 1, 0], [1, IGNORE, 0]])
    lengths = expected_accepted_length(logits_of(canvases), labels)
    assert lengths.tolist() == pytest.approx([0.5 + 0.5 * 0.8 + 0.5 * 0.8 * 0.9, 0.5])


def test_expected_accepted_length_has_the_gradient_of_its_formula() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 1, 2], [3, IGNORE, 0]])
    assert torch.autograd.gradcheck(
        lambda x: expected_accepted_length(x.double(), labels), logits, atol=1e-3, eps=1e-3
    )


def test_soft_labels_compare_with_the_most_likely_tokens_of_the_target() -> None:
    found = logits_of([[[0.5, 0.25, 0.25]]])[0]
    wanted = logits_of([[[0.6, 0.3, 0.1]]])[0]
    # The two most likely, renormalised: 2/3 and 1/3.
    expected = 2 / 3 * math.log((2 / 3) / 0.5) + 1 / 3 * math.log((1 / 3) / 0.25)
    assert soft_label_divergence(found, wanted, torch.ones(1), top=2).item() == pytest.approx(expected)
    assert soft_label_divergence(wanted, wanted, torch.ones(1), top=9).item() == pytest.approx(0, abs=1e-6)


def test_held_out_figures() -> None:
    matches = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0]]).bool()
    confidence = torch.tensor([[0.95, 0.95, 1.0], [0.55, 0.55, 0.05], [0.1, 0.0, 0.0], [0.9, 0.85, 0.8]])
    figures = HeldOut(matches, confidence).figures()
    bins = figures.pop("calibration")
    assert figures == {
        "mean_acceptance_length": 2.5,
        "accuracy_by_position": [0.75, 0.75, 0.75],
        "acceptance_by_position": [0.75, 0.5, 0.25],
        "drafts": 4,
    }
    assert bins[9] == {"from": 0.9, "to": 1.0, "accepted": 4, "rejected": 0}
    assert bins[5] == {"from": 0.5, "to": 0.6, "accepted": 1, "rejected": 1}
    assert sum(row["accepted"] + row["rejected"] for row in bins) == 12


WEIGHTS = {
    "cross_entropy_weight": ("clean_cross_entropy", "canvas_cross_entropy"),
    "focal_weight": ("focal",),
    "chain_weight": ("chain",),
    "streak_weight": ("streak",),
    "soft_label_weight": ("clean_soft_labels", "canvas_soft_labels"),
    "regression_weight": ("clean_regression", "canvas_regression"),
}


@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_loss_can_be_used_alone(weight: str) -> None:
    """Every loss is computed if and only if its own weight is set, and counts in the sum by it."""
    weights = dict.fromkeys(WEIGHTS, 0.0) | {weight: 2.0}
    config = TrainingConfig(steps=1, canvas_length=4, head_fraction=1.0, clean_weight=1.0, **weights)
    drafter = CanvasDrafter(tiny_target(), [0, 3])
    examples = random_examples(3, sampled=weight == "streak_weight")
    batch = collate(examples, CanvasPlan("causal_canvas", 4, 3), draft_index(None, 128), step_generator(0))
    parts = training_loss(drafter, drafter(batch.canvases), batch, config, step_generator(1))
    loss = parts.pop("loss")
    assert set(parts) == set(WEIGHTS[weight])
    sign = -1 if weight in ("chain_weight", "streak_weight") else 1
    assert loss.item() == pytest.approx(sign * 2 * sum(part.item() for part in parts.values()))
    assert all(part.item() != 0 for part in parts.values())
    loss.backward()
    assert drafter.body.norm.weight.grad.abs().sum() > 0


def test_reach_weights_are_expected_accepted_lengths() -> None:
    """By hand for q = 0.8, 0.5, 0.25: with alpha 0 the weights are 0.8 + 0.4 + 0.1, 0.4 + 0.1 and 0.1."""
    losses = -torch.tensor([[0.8, 0.5, 0.25]]).log()
    labels = torch.tensor([[3, 4, 5]])
    assert reach_weights(losses, labels, 0.0).tolist() == [pytest.approx([1.3, 0.5, 0.1])]
    moved = [0.9, 0.9 * 0.75, 0.9 * 0.75 * 0.625]
    assert reach_weights(losses, labels, 0.5).tolist() == [pytest.approx([sum(moved), sum(moved[1:]), moved[2]])]
    assert reach_weights(losses, labels, 1.0).tolist() == [[3, 2, 1]]
    cut = torch.tensor([[3, IGNORE, 5]])  # nothing after a token that cannot be drafted is reached
    assert reach_weights(losses, cut, 0.0).tolist() == [pytest.approx([0.8, 0, 0])]
    known = torch.tensor([[False, True, False]])
    assert reach_weights(losses, cut, 0.0, known).tolist() == [pytest.approx([0.8 + 0.8 + 0.2, 1.0, 0.2])]


@pytest.mark.parametrize("extended", [0.0, 0.5])
def test_the_cross_entropy_is_weighed_by_reach(extended: float) -> None:
    config = TrainingConfig(
        steps=1, canvas_length=4, head_fraction=1.0, cross_entropy_weight=1.0, regression_weight=0.0, reach_alpha=0.5
    )
    drafter = CanvasDrafter(tiny_target(), [0, 3])
    plan = CanvasPlan("causal_canvas", 4, 3, extended)
    batch = collate(random_examples(3), plan, draft_index(None, 128), step_generator(0))
    outputs = drafter(batch.canvases)
    found = training_loss(drafter, outputs, batch, config, step_generator(1))["canvas_cross_entropy"]
    logits = drafter.logits(draft_outputs(outputs, batch)).detach()
    revealed = batch.canvases.revealed
    total = weight = 0.0
    for row in range(3):
        for canvas in range(3):
            reach, terms = 1.0, []
            for k in range(4):
                known = revealed is not None and k < 3 and bool(revealed[row, canvas, k])
                position = int(batch.canvases.anchors[row, canvas]) + k
                label = int(batch.labels[row, position])
                loss = -float(logits[row, canvas, k].log_softmax(-1)[label]) if label != IGNORE else 0.0
                if not known:
                    reach *= (0.5 + 0.5 * math.exp(-loss)) if label != IGNORE else 0.0
                terms.append((reach, loss, not known and label != IGNORE and k > 0))
            for k, (_, loss, counts) in enumerate(terms):
                share = sum(reached for reached, _, _ in terms[k:])
                total, weight = total + counts * share * loss, weight + counts * share
    assert found.item() == pytest.approx(total / weight, rel=1e-4)
