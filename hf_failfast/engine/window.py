"""The input of one forward: a window of tokens after the kept slots, and which slots each token sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .ragged import RaggedIds, indices, is_even

# The limits (q,) or (B, q) of a window's positions (q,) or (B, q), given the number of known tokens per sequence: an
# int where it is the same for all, else a tensor (B, 1).
Limit = Callable[[torch.Tensor, int | torch.Tensor], torch.Tensor]


class Sight(NamedTuple):
    """Which slots the tokens of a window see: those before their limit."""

    limit: torch.Tensor  # (q,) or (B, q)


class Window(NamedTuple):
    """The input of one forward, for B sequences."""

    input_ids: torch.Tensor  # (B, q)
    starts: Sequence[int]  # the slot of each sequence's first token; this slot and all after it are overwritten
    read: int | torch.Tensor  # the tokens whose logits are computed: the number of last ones, or indices (r,)
    sight: Sight | None = None  # None: every token sees itself and all before it
    places: torch.Tensor | None = None  # (B, n): which of the tokens read are each sequence's own; None: all of them
    states: torch.Tensor | None = None  # (B, m, ...): what the model reads in place of the first m tokens
    added: torch.Tensor | None = None  # (B, q - m, ...): and beside the others

    @property
    def num_read(self) -> int:
        return self.read if isinstance(self.read, int) else len(self.read)

    def own(self, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Outputs for each sequence's own tokens, (B, n, ...), out of those for all tokens read, (B, r, ...)."""
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

        Logits are computed for `num_read` tokens of each: from the last known one on with shift 1, from the first of
        the tail with shift 0. Sequences with fewer uncached tokens begin earlier, with cached ones, so that all tails
        begin in the same column. Only where a sequence is too short for that (prompts of different length) do the
        columns differ.
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
