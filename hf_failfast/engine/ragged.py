"""The token ids of sequences of different length, in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class RaggedIds(NamedTuple):
    """Sequence b is `ids[b, : lengths[b]]`; ids after it are arbitrary. The lengths live on the host."""

    ids: torch.Tensor  # (B, width)
    lengths: list[int]

    @classmethod
    def full(cls, ids: torch.Tensor) -> RaggedIds:
        """Every sequence as long as the tensor (B, n) is wide."""
        return cls(ids, [ids.shape[1]] * ids.shape[0])

    def append(self, tail: torch.Tensor, counts: Sequence[int] | None = None) -> RaggedIds:
        """Appends the first `counts[b]` entries of the tail (B, c) to sequence b; all c by default."""
        if not tail.shape[1]:
            return self
        counts = [tail.shape[1]] * len(self.lengths) if counts is None else counts
        lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        if is_even(self.lengths):
            return RaggedIds(torch.cat([self.window([0], self.lengths[0]), tail], dim=1), lengths)
        room = max(self.lengths) + tail.shape[1] - self.ids.shape[1]
        ids = torch.nn.functional.pad(self.ids, (0, max(room, 0)))
        return RaggedIds(ids.scatter(1, indices(self.lengths, tail.shape[1], tail.device), tail), lengths)

    def window(self, starts: Sequence[int], width: int) -> torch.Tensor:
        """`width` ids of each sequence from `starts[b]` on, (B, width); it may reach beyond the end of a sequence."""
        if width == self.ids.shape[1] and not any(starts):
            return self.ids
        if is_even(starts) and starts[0] + width <= self.ids.shape[1]:
            return self.ids[:, starts[0] : starts[0] + width]
        index = indices(starts, width, self.ids.device).clamp(max=self.ids.shape[1] - 1)
        return self.ids.gather(1, index.expand(len(self.ids), -1))


def is_even(numbers: Sequence[int]) -> bool:
    """Whether all of them are the same."""
    return min(numbers) == max(numbers)


def indices(starts: Sequence[int], width: int, device: torch.device) -> torch.Tensor:
    """`starts[b]`, `starts[b]` + 1, ... for each sequence, (B, width); (1, width) where that is the same for all."""
    if is_even(starts):
        return torch.arange(starts[0], starts[0] + width, device=device)[None]
    return torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
