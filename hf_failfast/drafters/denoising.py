"""How masked positions become tokens: what a pass chooses, and which of its choices stay."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Denoising:
    """How many passes fill the masks of a chunk. One pass per chunk is FailFast's way, and the default.

    steps: T >= 1 passes over a chunk, each fixing an equal share of it, the most confident positions first
        (LLaDA, arXiv 2502.09992; SpecDiff, arXiv 2408.05636, drafts with T steps of MDLM).
    threshold: instead, as many passes as it takes; each fixes the positions with a confidence above the threshold and
        always the most confident one (Fast-dLLM, arXiv 2505.22618).
    """

    steps: int = 1
    threshold: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"`denoising_steps` must be an integer >= 1, but is {self.steps!r}.")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"`denoising_threshold` must be a number in [0, 1], but is {self.threshold!r}.")
        if self.threshold is not None and self.steps != 1:
            raise ValueError("Pass either `denoising_steps` or `denoising_threshold`, not both.")

    @property
    def is_single_pass(self) -> bool:
        return self.steps == 1 and self.threshold is None

    def choose(self, confidence: torch.Tensor, masked: torch.Tensor, step: int) -> torch.Tensor:
        """Which of the still masked positions (1, n) pass number `step` (from 0) fixes, as bools (1, n)."""
        confidence = confidence.masked_fill(~masked, -1.0)
        best = torch.zeros_like(masked).scatter(1, confidence.argmax(dim=1, keepdim=True), True)
        if self.threshold is not None:
            return masked & (best | (confidence > self.threshold))
        remaining = int(masked.sum())  # host sync: how many a step fixes
        count = math.ceil(remaining / max(self.steps - step, 1))
        order = confidence.argsort(dim=1, descending=True, stable=True)[:, :count]
        return masked & torch.zeros_like(masked).scatter(1, order, True)
