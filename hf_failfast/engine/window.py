"""What one forward reads: a window of tokens after the slots that are kept, and which slots each of them sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .ragged import RaggedIds, indices, is_even

# The limits (q,) or (B, q) of a window's positions (q,) or (B, q), given the number of known tokens of each sequence:
# a number where all know as many, else a tensor (B, 1).
Limit = Callable[[torch.Tensor, int | torch.Tensor], torch.Tensor]


class Sight(NamedTuple):
    """Which slots the tokens of a window see: those before their limit."""

    limit: torch.Tensor  # (q,) or (B, q)


class Window(NamedTuple):
    """The input of one forward, for B sequences."""

    input_ids: torch.Tensor  # (B, q)
    starts: Sequence[int]  # the slot of each sequence's first token; what was in it and after it is written anew
    read: int | torch.Tensor  # of how many of the last tokens, or of which (r,), the logits are computed
    sight: Sight | None = None  # None: every token sees itself and all before it
    places: torch.Tensor | None = None  # (B, n): which of the tokens read are each sequence's own; None: all of them

    @property
    def num_read(self) -> int:
        return self.read if isinstance(self.read, int) else len(self.read)

    def own(self, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """What was made of the tokens read, (B, r, ...) each, of each sequence's own ones, (B, n, ...)."""
        if self.places is None:
            return outputs
        sequence = torch.arange(len(self.places), device=self.places.device)[:, None]
        return tuple(output[sequence, self.places] for output in outputs)

    @classmethod
    def over(
        cls,
        known: RaggedIds,
        tail: torch.Tensor,  # (B, c)
        cached: Sequence[int],
        num_read: int,
        shift: int = 1,
        limit: Limit | None = None,
    ) -> Window:
        """Each sequence's known tokens that are not cached, and its tail after them.

        Read are `num_read` tokens of each: from the last known one on with shift 1, from the first of the tail with
        shift 0. Sequences that have less to read than others begin earlier, with tokens that are cached already, so
        that all tails begin in the same column; only where a sequence is too short for that (prompts of different
        length) the columns differ.
        """
        unread = max(length - slots for length, slots in zip(known.lengths, cached, strict=True))
        width = unread + tail.shape[1]
        if unread <= min(known.lengths):
            starts = [length - unread for length in known.lengths]
            input_ids = torch.cat([known.window(starts, unread), tail], dim=1)
        else:
            starts = list(cached)
            input_ids = known.append(tail).window(starts, width)
        device = input_ids.device
        sight = None
        if limit is not None:
            clean_end = known.lengths[0] if is_even(known.lengths) else indices(known.lengths, 1, device)
            sight = Sight(limit(indices(starts, width, device), clean_end))
        first = [length - shift - start for length, start in zip(known.lengths, starts, strict=True)]
        if is_even(first):
            is_end = first[0] + num_read == width
            read = num_read if is_end else torch.arange(first[0], first[0] + num_read, device=device)
            return cls(input_ids, starts, read, sight)
        columns = sorted({start + offset for start in first for offset in range(num_read)})
        places = [[columns.index(start + offset) for offset in range(num_read)] for start in first]
        return cls(input_ids, starts, torch.tensor(columns, device=device), sight, torch.tensor(places, device=device))
