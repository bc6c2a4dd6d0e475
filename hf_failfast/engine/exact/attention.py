"""Attention in blocks of one shape, so that a row's result depends on that row and what it sees alone.

torch's fused attention walks over the keys in blocks of 512 from the first one on, and takes all rows there are. Here
the keys always fill whole blocks and the rows are always `ROWS`: every product has one shape, masked keys count as
exact zeros, and a block without a visible key changes nothing. It is computed in float32 whatever the model's dtype:
products in bfloat16 differ from one CPU to the next, and are the less precise ones.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn.functional import scaled_dot_product_attention

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
    if attn_mask is None and is_causal:
        attn_mask = torch.ones(width, num_slots, dtype=torch.bool, device=query.device).tril()
    if len(query) == 1:
        return _of_sequence(query[0], key[0], value[0], attn_mask, scale)[None].to(query.dtype)
    masks = [None] * len(query) if attn_mask is None else attn_mask.expand(len(query), 1, width, num_slots)
    rows = [_of_sequence(*each, scale) for each in zip(query, key, value, masks, strict=True)]
    return torch.stack(rows).to(query.dtype)


def _of_sequence(
    query: torch.Tensor,  # (H, q, D)
    key: torch.Tensor,  # (H / group, S, D)
    value: torch.Tensor,
    visible: torch.Tensor | None,  # (..., 1 or q, S), bool; None: every token sees all
    scale: float | None,
) -> torch.Tensor:
    num_heads, width, head_dim = query.shape
    num_groups, num_slots, _ = key.shape
    key, value = _whole_blocks(key), _whole_blocks(value)
    num_rows = num_heads // num_groups * width  # a group's heads are rows of one product
    num_blocks = -(-num_rows // ROWS)
    rows = query.new_zeros(num_groups, num_blocks * ROWS, head_dim, dtype=torch.float32)
    rows[:, :num_rows] = query.reshape(num_groups, num_rows, head_dim)
    blocks = rows.view(num_groups, num_blocks, ROWS, head_dim).transpose(0, 1)
    if visible is None:
        mask = _sees_all(num_blocks, num_slots, key.shape[2])
    else:
        sees = visible.reshape(-1, num_slots).expand(width, num_slots).repeat(num_heads // num_groups, 1)
        mask = _mask(sees, num_blocks, key.shape[2])
    attended = [
        scaled_dot_product_attention(
            block,
            key.expand(len(block), -1, -1, -1),
            value.expand(len(block), -1, -1, -1),
            attn_mask=part,
            scale=scale,
        )
        for block, part in zip(blocks.split(BLOCKS_AT_ONCE), mask.split(BLOCKS_AT_ONCE), strict=True)
    ]
    together = attended[0] if len(attended) == 1 else torch.cat(attended)
    together = together.transpose(0, 1).reshape(num_groups, -1, head_dim)[:, :num_rows]
    return together.reshape(num_heads, width, head_dim)


def _whole_blocks(states: torch.Tensor) -> torch.Tensor:
    """The states in float32, (1, groups, slots, D), of a multiple of `KEYS` slots."""
    num_groups, num_slots, head_dim = states.shape
    whole = states.new_zeros(1, num_groups, num_slots + -num_slots % KEYS, head_dim, dtype=torch.float32)
    whole[0, :, :num_slots] = states
    return whole


def _mask(sees: torch.Tensor, num_blocks: int, num_slots: int) -> torch.Tensor:
    """What adds to the scores, (num_blocks, 1, ROWS, num_slots), of rows (n, S); padding sees the first slot."""
    mask = torch.full((num_blocks * ROWS, num_slots), -torch.inf, device=sees.device)
    mask[: sees.shape[0], : sees.shape[1]].masked_fill_(sees, 0.0)
    mask[sees.shape[0] :, 0] = 0.0
    return mask.view(num_blocks, 1, ROWS, num_slots)


@lru_cache(maxsize=8)
def _sees_all(num_blocks: int, num_seen: int, num_slots: int) -> torch.Tensor:
    """The same of rows that see the first `num_seen` slots: all layers of a forward share it."""
    with torch.inference_mode(False), torch.no_grad():
        mask = torch.full((num_blocks * ROWS, num_slots), -torch.inf)
        mask[:, :num_seen] = 0.0
        return mask.view(num_blocks, 1, ROWS, num_slots)
