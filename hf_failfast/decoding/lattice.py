"""A draft's candidates on the host: at every position its own token, and the other likely ones of the same pass."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..drafters import Draft

MOST_ALTERNATIVES = 15  # of a position, besides the draft's own token


class Column(NamedTuple):
    """A draft of one sequence on the host, by position."""

    token_ids: list[list[int]]  # the own token, then the alternatives
    confidence: list[float]
    probs: list[list[float]]  # of the alternatives


def columns_of(draft: Draft) -> list[Column]:
    """The candidates of each sequence, in one transfer; float32 holds ids up to 2 ** 24 exactly."""
    assert draft.alternatives is not None
    ids, probs = draft.alternatives
    own = torch.stack([draft.token_ids.to(ids).float(), draft.confidence.to(probs)], dim=-1)
    rows = torch.cat([own, ids.float(), probs], dim=-1).tolist()  # host sync: the candidates
    count = ids.shape[-1]
    return [
        Column(
            [[int(values[0]), *map(int, values[2 : 2 + count])] for values in row],
            [values[1] for values in row],
            [values[2 + count :] for values in row],
        )
        for row in rows
    ]
