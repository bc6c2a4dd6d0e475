"""One packed batch and the drafter's outputs -> the training loss with its parts, or the held-out acceptance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear, pad

from .batches import Batch
from .config import TrainingConfig
from .lora import Trainable
from .losses import (
    IGNORE,
    expected_accepted_length,
    focal_cross_entropy,
    position_weights,
    reach_weights,
    soft_label_divergence,
    token_losses,
    weighted_mean,
    weighted_regression,
)

Outputs = tuple[torch.Tensor, torch.Tensor]  # what `CanvasDrafter.forward` returns


@dataclass(frozen=True)
class Rows:
    """Outputs and what they should be: output and wanted [..., hidden], labels [...], weights [...]; `known` [...] are
    tokens that the drafter was given."""

    output: torch.Tensor
    wanted: torch.Tensor | None
    labels: torch.Tensor
    weights: torch.Tensor
    known: torch.Tensor | None = None

    def subset(self, fraction: float, generator: torch.Generator) -> tuple["Rows", torch.Tensor]:
        """A random fraction along the first dimension, and the indices that were chosen."""
        count = max(int(len(self.labels) * fraction), 1)
        chosen = torch.randperm(len(self.labels), generator=generator)[:count].to(self.labels.device)
        wanted = None if self.wanted is None else self.wanted[chosen]
        known = None if self.known is None else self.known[chosen]
        return Rows(self.output[chosen], wanted, self.labels[chosen], self.weights[chosen], known), chosen


def training_loss(
    drafter: Trainable, outputs: Outputs, batch: Batch, config: TrainingConfig, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """`loss` and its parts, those of weight 0 left out.

    Every clean row of the answer trains draft position 1, the canvas rows positions 2 .. K. The losses that need
    logits see a random fraction of the clean rows and of the canvases.
    """
    # A LoRA leaves the clean rows as the target's.
    rows_by_name = {} if config.lora else {"clean": _clean_rows(outputs[0], batch)}
    rows_by_name["canvas"] = _canvases(outputs, batch, config)
    parts = {}
    if config.regression_weight:
        for name, rows in rows_by_name.items():
            assert rows.wanted is not None
            parts[f"{name}_regression"] = weighted_regression(rows.output, rows.wanted, rows.weights)
    parts |= _head_losses(drafter, rows_by_name, batch, config, generator)
    weights = {
        "clean_regression": config.regression_weight * config.clean_weight,
        "canvas_regression": config.regression_weight,
        "clean_cross_entropy": config.cross_entropy_weight,
        "canvas_cross_entropy": config.cross_entropy_weight,
        "clean_soft_labels": config.soft_label_weight,
        "canvas_soft_labels": config.soft_label_weight,
        "focal": config.focal_weight,
        "chain": -config.chain_weight,  # an expected length: more is better
        "streak": -config.streak_weight,
    }
    parts["loss"] = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return parts


def _head_losses(
    drafter: Trainable,
    rows_by_name: Mapping[str, Rows],
    batch: Batch,
    config: TrainingConfig,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    parts = {}
    for name, whole in rows_by_name.items():
        rows, chosen = whole.subset(config.head_fraction, generator)
        logits = drafter.logits(rows.output)
        if config.cross_entropy_weight:
            losses, weights = token_losses(logits, rows.labels), rows.weights * (rows.labels != IGNORE)
            if config.reach_alpha is not None and name == "canvas":
                weights = (weights > 0) * reach_weights(losses, rows.labels, config.reach_alpha, rows.known)
            parts[f"{name}_cross_entropy"] = weighted_mean(losses, weights)
        if config.soft_label_weight:
            assert rows.wanted is not None
            target_logits = linear(rows.wanted.to(drafter.head.dtype), drafter.head)
            divergence = soft_label_divergence(logits, target_logits, rows.weights, config.soft_label_top)
            parts[f"{name}_soft_labels"] = divergence
    if config.focal_weight:
        parts["focal"] = focal_cross_entropy(logits, rows.labels)  # the canvases come last
    if config.chain_weight or config.streak_weight:
        lengths = expected_accepted_length(logits, rows.labels)
        sampled = batch.sampled.repeat_interleave(batch.canvases.anchors.shape[1])[chosen]
        if config.chain_weight:
            parts["chain"] = (lengths * ~sampled).sum() / (~sampled).sum().clamp_min(1)
        if config.streak_weight:
            parts["streak"] = (lengths * sampled).sum() / sampled.sum().clamp_min(1)
    return parts


def _clean_rows(output: torch.Tensor, batch: Batch) -> Rows:
    """[n]: the rows that predict a token of the answer; with blocks only those that see nothing after themselves."""
    clean = output.shape[1]
    used = batch.answer[:, :clean]
    if batch.canvases.attention == "block_causal":
        block = batch.canvases.canvas_length
        used = used & (torch.arange(clean, device=used.device) % block == block - 1)
    wanted = None if batch.wanted is None else batch.wanted[:, :clean][used]
    chosen = output[used]
    return Rows(chosen, wanted, batch.labels[:, :clean][used], torch.ones(len(chosen), device=output.device))


def _canvases(outputs: Outputs, batch: Batch, config: TrainingConfig) -> Rows:
    """[batch * A, K]: weight 0 at draft position 1, after the answer, and where the token is revealed."""
    used = batch.drafted(batch.answer)
    known = None
    if batch.canvases.revealed is not None:  # [..., K], or in a causal canvas one row less than positions
        known = pad(batch.canvases.revealed, (0, used.shape[-1] - batch.canvases.rows_per_canvas))
        used = used & ~known
    labels = batch.drafted(batch.labels).masked_fill(~used, IGNORE)
    weights = position_weights(batch.canvases.canvas_length, config.position_decay).to(used.device) * used
    weights[..., 0] = 0
    wanted = None if batch.wanted is None else batch.drafted(batch.wanted).flatten(0, 1)
    output = draft_outputs(outputs, batch).flatten(0, 1)
    known = None if known is None else known.flatten(0, 1)
    return Rows(output, wanted, labels.flatten(0, 1), weights.flatten(0, 1), known)


def draft_outputs(outputs: Outputs, batch: Batch) -> torch.Tensor:
    """[batch, A, K, hidden]: the anchor's clean row, then the canvas rows."""
    clean, canvas = outputs
    rows = torch.arange(len(clean), device=clean.device)[:, None]
    first = clean[rows, batch.canvases.anchors]
    return torch.cat([first[:, :, None], canvas[:, :, : batch.canvases.canvas_length - 1]], dim=2)


@dataclass(frozen=True)
class HeldOut:
    """One teacher-forced pass over drafts [n, K]: is the greedy token the target's, and how sure was the drafter."""

    matches: torch.Tensor
    confidence: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence["HeldOut"]) -> "HeldOut":
        return cls(torch.cat([part.matches for part in parts]), torch.cat([part.confidence for part in parts]))

    def figures(self) -> dict[str, Any]:
        """The mean acceptance length counts the bonus token, as vLLM does."""
        accepted = self.matches.long().cumprod(dim=1)
        return {
            "mean_acceptance_length": round(1 + accepted.sum(dim=1).float().mean().item(), 4),
            "accuracy_by_position": _rounded(self.matches.float().mean(dim=0)),
            "acceptance_by_position": _rounded(accepted.float().mean(dim=0)),
            "calibration": self._calibration(accepted.bool()),
            "drafts": len(self.matches),
        }

    def _calibration(self, accepted: torch.Tensor) -> list[dict[str, float]]:
        """Draft tokens per tenth of confidence."""
        number = (self.confidence * 10).long().clamp(0, 9)
        counts = [torch.bincount(number[chosen], minlength=10).tolist() for chosen in (accepted, ~accepted)]
        rows = enumerate(zip(*counts, strict=True))
        return [{"from": i / 10, "to": (i + 1) / 10, "accepted": yes, "rejected": no} for i, (yes, no) in rows]


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


@torch.no_grad()
def held_out_drafts(drafter: Trainable, batch: Batch) -> HeldOut:
    logits = drafter.logits(draft_outputs(drafter(batch.canvases, batch.features), batch)).float()
    best, drafted = logits.max(dim=-1)
    matches = drafted == batch.drafted(batch.labels)
    confidence = (best - logits.logsumexp(dim=-1)).exp()
    return HeldOut(matches.flatten(0, 1).cpu(), confidence.flatten(0, 1).cpu())
