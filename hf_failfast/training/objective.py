"""One packed batch -> the training loss, or its held-out acceptance."""

from dataclasses import dataclass

import torch

from .batches import Batch
from .config import TrainingConfig
from .losses import (
    leading_matches,
    position_weights,
    weighted_cross_entropy,
    weighted_regression,
)
from .model import CanvasDrafter


@dataclass(frozen=True)
class Rows:
    """Rows of both kinds in one list: output and wanted [n, hidden], labels [n], weights [n]."""

    output: torch.Tensor
    wanted: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


def training_loss(
    drafter: CanvasDrafter, batch: Batch, config: TrainingConfig, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """`loss` and its parts. Every clean row of the answer trains draft position 1, the mask rows positions 2 .. K."""
    clean_output, mask_output = drafter(batch.canvases)
    clean = _clean_rows(clean_output, batch)
    masks = _mask_rows(mask_output, batch, config)
    parts = {
        "clean_cross_entropy": _cross_entropy(drafter, clean, config, generator),
        "mask_cross_entropy": _cross_entropy(drafter, masks, config, generator),
        "clean_regression": weighted_regression(clean.output, clean.wanted, clean.weights),
        "mask_regression": weighted_regression(masks.output, masks.wanted, masks.weights),
    }
    cross_entropy = parts["clean_cross_entropy"] + parts["mask_cross_entropy"]
    regression = config.clean_weight * parts["clean_regression"] + parts["mask_regression"]
    parts["loss"] = config.cross_entropy_weight * cross_entropy + config.regression_weight * regression
    return parts


def _clean_rows(output: torch.Tensor, batch: Batch) -> Rows:
    clean = output.shape[1]
    answer = batch.answer[:, :clean]
    chosen = output[answer]
    wanted, labels = batch.wanted[:, :clean][answer], batch.labels[:, :clean][answer]
    return Rows(chosen, wanted, labels, torch.ones(len(chosen), device=output.device))


def _mask_rows(output: torch.Tensor, batch: Batch, config: TrainingConfig) -> Rows:
    """Only the rows that predict a token of the answer: a canvas may reach past its end."""
    batch_size, anchors, per_canvas, hidden = output.shape
    rows = batch.canvas_rows().unflatten(1, (anchors, per_canvas + 1))[:, :, 1:].flatten(1)  # [batch, A * (K - 1)]
    answer = batch.answer.gather(1, rows)
    decay = position_weights(config.canvas_length, config.position_decay).to(output.device)[1:]
    weights = decay.expand(batch_size, anchors, -1).flatten(1)[answer]
    wanted = batch.wanted.gather(1, rows[:, :, None].expand(-1, -1, hidden))[answer]
    return Rows(output.flatten(1, 2)[answer], wanted, batch.labels.gather(1, rows)[answer], weights)


def _cross_entropy(
    drafter: CanvasDrafter, rows: Rows, config: TrainingConfig, generator: torch.Generator
) -> torch.Tensor:
    """On a random fraction of the rows."""
    count = max(int(len(rows.labels) * config.cross_entropy_fraction), 1)
    chosen = torch.randperm(len(rows.labels), generator=generator)[:count].to(rows.labels.device)
    logits = drafter.logits(rows.output[chosen])
    return weighted_cross_entropy(logits, rows.labels[chosen], rows.weights[chosen])


@torch.no_grad()
def held_out_matches(drafter: CanvasDrafter, batch: Batch) -> torch.Tensor:
    """bool [batch * A, K]: is the greedy draft token at each position the target's? Teacher-forced, one pass."""
    clean_output, mask_output = drafter(batch.canvases)
    index = batch.canvases.anchors[:, :, None].expand(-1, -1, clean_output.shape[-1])
    first = clean_output.gather(1, index)[:, :, None]
    drafted = drafter.logits(torch.cat([first, mask_output], dim=2)).argmax(dim=-1)  # [batch, A, K]
    labels = batch.labels.gather(1, batch.canvas_rows()).unflatten(1, drafted.shape[1:])
    return (drafted == labels).flatten(0, 1)


def acceptance(matches: torch.Tensor) -> dict[str, object]:
    """Held-out figures of matches [n, K]: the mean acceptance length counts the bonus token, as vLLM does."""
    accepted = leading_matches(matches, torch.ones_like(matches)).float()
    by_position = matches.float().mean(dim=0)
    return {
        "mean_acceptance_length": round(1 + accepted.mean().item(), 4),
        "accuracy_by_position": [round(value, 4) for value in by_position.tolist()],
        "drafts": len(matches),
    }
