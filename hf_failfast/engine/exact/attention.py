"""Attention in blocks of one shape, so that a row's result depends on that row and what it sees alone.

torch's fused attention walks over the keys in blocks of 512 from the first one on, and takes all rows there are. Here
the keys always fill whole blocks and the rows are always `ROWS`: every product has one shape, masked keys count as
exact zeros, and a block without a visible key changes nothing. It is computed in float32 whatever the model's dtype:
products in bfloat16 differ from one CPU to the next, and are the less precise ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

KEYS = 512  # torch walks over keys in blocks of this size, for calls of fewer than 192 rows
ROWS = 8
BLOCKS_AT_ONCE = 64  # of rows; a mask holds ROWS x keys numbers for each


def attend(
    query: torch.Tensor,  # (B, H, q, D)
    key: torch.Tensor,  # (B, H / group, S, D)
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,  # (1 or B, 1, 1 or q, S), bool
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """As torch's `scaled_dot_product_attention`. Raises ValueError on what has no form of this kind."""
    if dropout_p:
        raise ValueError("attention with dropout")
    if attn_mask is not None and (attn_mask.dtype != torch.bool or attn_mask.shape[-3:-2] not in ((), (1,))):
        raise ValueError("attention with a mask that adds to the scores or differs between heads")
    if query.shape[-1] != value.shape[-1]:
        raise ValueError("attention whose values are not as wide as its keys")
    width, num_slots = query.shape[2], key.shape[2]
    visible = attn_mask
    if visible is None:
        visible = torch.ones(width, num_slots, dtype=torch.bool, device=query.device)
        visible = visible.tril() if is_causal else visible
    visible = visible.expand(len(query), 1, width, num_slots)
    rows = [_of_sequence(*each, scale) for each in zip(query, key, value, visible, strict=True)]
    return torch.stack(rows).to(query.dtype)


def _of_sequence(
    query: torch.Tensor,  # (H, q, D)
    key: torch.Tensor,  # (H / group, S, D)
    value: torch.Tensor,
    visible: torch.Tensor,  # (1, q, S)
    scale: float | None,
) -> torch.Tensor:
    num_heads, width, head_dim = query.shape
    num_groups = len(key)
    rows = query.float().reshape(num_groups, -1, head_dim)  # a group's heads are rows of one product
    sees = visible[0].repeat(num_heads // num_groups, 1)
    key, value = (_whole_blocks(states) for states in (key, value))
    attended = [
        scaled_dot_product_attention(
            block,
            key.expand(len(block), -1, -1, -1),
            value.expand(len(block), -1, -1, -1),
            attn_mask=mask,
            scale=scale,
        )
        for block, mask in _blocks(rows, sees, key.shape[-2])
    ]
    together = torch.cat(attended).transpose(0, 1).reshape(num_groups, -1, head_dim)
    return together[:, : rows.shape[1]].reshape(num_heads, width, head_dim)


def _whole_blocks(states: torch.Tensor) -> torch.Tensor:
    """Float32 states (1, groups, slots, D) of a multiple of `KEYS` slots."""
    return pad(states.float(), (0, 0, 0, -states.shape[1] % KEYS)).contiguous()[None]


def _blocks(
    rows: torch.Tensor,  # (groups, n, D)
    sees: torch.Tensor,  # (n, S)
    num_slots: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The rows as (m, groups, ROWS, D) with a mask (m, 1, ROWS, num_slots); padding sees the first slot."""
    missing = -rows.shape[1] % ROWS
    rows = pad(rows, (0, 0, 0, missing)).reshape(len(rows), -1, ROWS, rows.shape[-1]).transpose(0, 1)
    mask = pad(sees, (0, num_slots - sees.shape[1], 0, missing))
    mask[len(sees) :, 0] = True
    mask = mask.reshape(-1, 1, ROWS, num_slots)
    for start in range(0, len(rows), BLOCKS_AT_ONCE):
        end = start + BLOCKS_AT_ONCE
        yield rows[start:end].contiguous(), mask[start:end].contiguous()
