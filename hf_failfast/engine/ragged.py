"""Rows of differing length in one tensor: the texts of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Rows(NamedTuple):
    """Row b is `values[b, : lengths[b]]`; what stands behind it means nothing. The lengths live on the host."""

    values: torch.Tensor  # (B, width)
    lengths: list[int]

    @classmethod
    def full(cls, values: torch.Tensor) -> Rows:
        """Every row as long as the tensor (B, n) is wide."""
        return cls(values, [values.shape[1]] * values.shape[0])

    def append(self, tail: torch.Tensor, counts: Sequence[int] | None = None) -> Rows:
        """With the first `counts[b]` entries of the tail (B, c) behind row b; all c by default."""
        if not tail.shape[1]:
            return self
        counts = [tail.shape[1]] * len(self.lengths) if counts is None else counts
        lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        if is_even(self.lengths):
            return Rows(torch.cat([self.window([0], self.lengths[0]), tail], dim=1), lengths)
        room = max(self.lengths) + tail.shape[1] - self.values.shape[1]
        values = torch.nn.functional.pad(self.values, (0, max(room, 0)))
        return Rows(values.scatter(1, indices(self.lengths, tail.shape[1], tail.device), tail), lengths)

    def window(self, starts: Sequence[int], width: int) -> torch.Tensor:
        """`width` entries of each row from `starts[b]` on, (B, width); it may reach beyond the end of a row."""
        if width == self.values.shape[1] and not any(starts):
            return self.values
        if is_even(starts) and starts[0] + width <= self.values.shape[1]:
            return self.values[:, starts[0] : starts[0] + width]
        index = indices(starts, width, self.values.device).clamp(max=self.values.shape[1] - 1)
        return self.values.gather(1, index.expand(len(self.values), -1))


def is_even(numbers: Sequence[int]) -> bool:
    """Whether all of them are the same."""
    return min(numbers) == max(numbers)


def indices(starts: Sequence[int], width: int, device: torch.device) -> torch.Tensor:
    """`starts[b]`, `starts[b]` + 1, ... for each row, (B, width); (1, width) where that is the same for all."""
    if is_even(starts):
        return torch.arange(starts[0], starts[0] + width, device=device)[None]
    return torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
