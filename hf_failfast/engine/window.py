"""The input of one forward: a window of tokens after the kept slots, and which slots each token sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .ragged import RaggedIds, indices, is_even

# The limits (q,) or (B, q) of a window's positions (q,) or (B, q), given the number of known tokens per sequence: an
# int where it is the same for all, else a tensor (B, 1).
Limit = Callable[[torch.Tensor, int | torch.Tensor], torch.Tensor]


# The most tokens of a tree: one bit of an integer says of each whether a token sees it.
MAX_NODES = 64


class Sight(NamedTuple):
    """Which slots the tokens of a window see: those before their limit, and of the next ones those whose bit is set:
    bit j is for the slot `limit` + j."""

    limit: torch.Tensor  # (q,) or (B, q)
    ancestors: torch.Tensor | None = None  # (B, q) int64; None: no slot from the limit on

    def of_tree(self, slots: torch.Tensor) -> torch.Tensor:
        """Which of the slots (n,) or (B, q, n) each token sees from its limit on, bools (B, q, n)."""
        assert self.ancestors is not None
        bit = slots - self.limit[..., None]
        is_set = (self.ancestors[..., None] >> bit.clamp(0, MAX_NODES - 1)) & 1
        return (is_set == 1) & (bit >= 0) & (bit < MAX_NODES)


class Tree(NamedTuple):
    """The shape of the trees that follow each sequence's known tokens, n <= MAX_NODES tokens each.

    depths: of each token, 0 for those right after the known ones; tokens of one depth have the same position.
    ancestors: which tokens of the tree each one sees, itself included: bit j for the j-th.
    """

    depths: torch.Tensor  # (B, n)
    ancestors: torch.Tensor  # (B, n) int64


class Window(NamedTuple):
    """The input of one forward, for B sequences."""

    input_ids: torch.Tensor  # (B, q)
    starts: Sequence[int]  # the slot of each sequence's first token; this slot and all after it are overwritten
    read: int | torch.Tensor  # the tokens whose logits are computed: the number of last ones, or indices (r,)
    sight: Sight | None = None  # None: every token sees itself and all before it
    places: torch.Tensor | None = None  # (B, n): which of the tokens read are each sequence's own; None: all of them
    states: torch.Tensor | None = None  # (B, m, ...): what the model reads in place of the first m tokens
    added: torch.Tensor | None = None  # (B, q - m, ...): and beside the others
    positions: torch.Tensor | None = None  # (B, q); None: those of the slots

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
        tree: Tree | None = None,
    ) -> Window:
        """Each sequence's known tokens that are not cached, and its tail after them; with `tree` the tail is one.

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
        sight = positions = None
        if limit is not None:
            clean_end = known.lengths[0] if is_even(known.lengths) else indices(known.lengths, 1, device)
            sight = Sight(limit(indices(starts, width, device), clean_end))
        elif tree is not None:
            positions, sight = _in_tree(tree, indices(starts, width, device), indices(known.lengths, 1, device))
        first = [length - shift - start for length, start in zip(known.lengths, starts, strict=True)]
        if is_even(first):
            is_end = first[0] + num_read == width
            read = num_read if is_end else torch.arange(first[0], first[0] + num_read, device=device)
            return cls(input_ids, starts, read, sight, positions=positions)
        columns = sorted({start + offset for start in first for offset in range(num_read)})
        places = [[columns.index(start + offset) for offset in range(num_read)] for start in first]
        read, own = torch.tensor(columns, device=device), torch.tensor(places, device=device)
        return cls(input_ids, starts, read, sight, own, positions)


def _in_tree(tree: Tree, slots: torch.Tensor, clean_end: torch.Tensor) -> tuple[torch.Tensor, Sight]:
    """Positions and sight of the tokens in `slots`, (B, q) or (1, q): those before `clean_end` (B, 1) or (1, 1) are
    causal, the others are the tree's. Tokens after the tree, which no one asks about, go by its last one."""
    num_rows, num_nodes = tree.depths.shape
    slots, clean_end = slots.expand(num_rows, -1), clean_end.expand(num_rows, -1)
    node = (slots - clean_end).clamp(0, num_nodes - 1)
    is_node = slots >= clean_end
    positions = torch.where(is_node, clean_end + tree.depths.gather(1, node), slots)
    limit = torch.minimum(slots + 1, clean_end)
    return positions, Sight(limit, torch.where(is_node, tree.ancestors.gather(1, node), 0))
