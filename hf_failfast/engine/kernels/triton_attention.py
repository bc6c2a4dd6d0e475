"""Grouped-query attention over a slot cache, split over the slots. Reference: `reference.attention`.

The tokens of all query heads that share a K/V head form one tile, so that K and V are read once and never repeated.
The slots are split over thread blocks, since a few tokens would not keep a GPU busy. Two numbers say what a token
sees, and in a tree 64 bits more, so that there is no mask in memory, and one launch serves every length: blocks beyond
the last limit read nothing.
"""

import torch
import triton
import triton.language as tl

_PROGRAMS = 256


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query,
    key,
    value,
    limit,
    first,
    ancestors,
    partial,  # (SPLITS, B, H, q, D) fp32: sum of exp(score - top) * value
    top_of,  # (SPLITS, B, H, q)
    mass_of,
    scale,
    num_kv_heads,
    num_rows,
    num_slots,
    stride_lb,  # of limit and first
    stride_fb,
    stride_ab,
    stride_qb,
    stride_qh,
    stride_qi,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_vb,
    stride_vh,
    stride_vs,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # HEAD_DIM rounded up to a power of two
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    TILES: tl.constexpr,
    IS_TREE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    batch = tl.program_id(0) // num_kv_heads
    kv_head = tl.program_id(0) % num_kv_heads
    split = tl.program_id(2)
    packed = tl.program_id(1) * ROWS + tl.arange(0, ROWS)  # (query head of the group, token)
    is_row = packed < GROUP * num_rows
    head = kv_head * GROUP + packed // num_rows
    row = packed % num_rows
    dims = tl.arange(0, WIDTH)
    is_dim = dims < HEAD_DIM

    query_at = batch.to(tl.int64) * stride_qb + head * stride_qh + row * stride_qi
    q = tl.load(query + query_at[:, None] + dims[None, :], mask=is_row[:, None] & is_dim[None, :], other=0.0)
    end = tl.load(limit + batch * stride_lb + row, mask=is_row, other=0)
    start = tl.load(first + batch * stride_fb + row, mask=is_row, other=num_slots)
    last_end = tl.max(end, axis=0)
    if IS_TREE:
        bits = tl.load(ancestors + batch * stride_ab + row, mask=is_row, other=0)
        last_end += 64
    first_start = tl.min(start, axis=0)

    top = tl.full((ROWS,), -float("inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    attended = tl.zeros((ROWS, WIDTH), tl.float32)
    key_at = key + batch.to(tl.int64) * stride_kb + kv_head * stride_kh
    value_at = value + batch.to(tl.int64) * stride_vb + kv_head * stride_vh
    for tile in range(TILES):
        begin = (split * TILES + tile) * SLOTS
        if (begin < last_end) & (begin + SLOTS > first_start):
            slots = begin + tl.arange(0, SLOTS)
            is_slot = (slots < num_slots)[:, None] & is_dim[None, :]
            k = tl.load(key_at + slots[:, None] * stride_ks + dims[None, :], mask=is_slot, other=0.0)
            v = tl.load(value_at + slots[:, None] * stride_vs + dims[None, :], mask=is_slot, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            visible = (slots[None, :] < end[:, None]) & (slots[None, :] >= start[:, None])
            if IS_TREE:
                bit = slots[None, :] - end[:, None]
                is_bit = (bit >= 0) & (bit < 64)
                visible |= is_bit & (((bits[:, None] >> tl.where(is_bit, bit, 0)) & 1) == 1)
            scores = tl.where(visible & (slots < num_slots)[None, :], scores, -float("inf"))
            new_top = tl.maximum(top, tl.max(scores, axis=1))
            shift = tl.where(new_top == -float("inf"), 0.0, new_top)
            weights = tl.exp(scores - shift[:, None])
            decay = tl.exp(top - shift)
            mass = mass * decay + tl.sum(weights, axis=1)
            attended = attended * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
            top = new_top

    num_heads = num_kv_heads * GROUP
    num_sequences = tl.num_programs(0) // num_kv_heads
    out = ((split * num_sequences + batch) * num_heads + head) * num_rows + row
    tl.store(top_of + out, top, mask=is_row)
    tl.store(mass_of + out, mass, mask=is_row)
    partial_at = partial + out.to(tl.int64)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(partial_at, attended, mask=is_row[:, None] & is_dim[None, :])


@triton.jit
def _join(  # type: ignore[no-untyped-def]
    partial,
    top_of,
    mass_of,
    out,  # (B, q, H, D)
    num_heads,
    num_rows,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Joins the splits of one token of one head."""
    at = tl.program_id(0)  # of (B, H, q)
    num_total = tl.num_programs(0)
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, WIDTH)
    parts = splits.to(tl.int64) * num_total + at
    tops = tl.load(top_of + parts)
    top = tl.max(tops, axis=0)
    decay = tl.exp(tops - tl.where(top == -float("inf"), 0.0, top))
    mass = tl.sum(tl.load(mass_of + parts) * decay, axis=0)
    values = tl.load(partial + parts[:, None] * HEAD_DIM + dims[None, :], mask=(dims < HEAD_DIM)[None, :], other=0.0)
    attended = tl.sum(values * decay[:, None], axis=0) / tl.where(mass == 0.0, 1.0, mass)
    row = at % num_rows
    head = at // num_rows % num_heads
    batch = at // (num_rows * num_heads)
    out_at = ((batch * num_rows + row) * num_heads + head).to(tl.int64) * HEAD_DIM
    tl.store(out + out_at + dims, attended.to(out.dtype.element_ty), mask=dims < HEAD_DIM)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    limit: torch.Tensor,
    first: torch.Tensor | None = None,
    scale: float | None = None,
    ancestors: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `reference.attention`. The last dimension of every tensor must be contiguous.

    The result is a (B, H, q, D) view of the layout that models continue with, (B, q, H, D).
    """
    batch, num_heads, num_rows, head_dim = query.shape
    num_kv_heads, num_slots = key.shape[1:3]
    group = num_heads // num_kv_heads
    slots = 32 if query.dtype == torch.float32 or head_dim > 128 else 64  # a step's K and V fit the shared memory
    rows = min(max(16, triton.next_power_of_2(group * num_rows)), 64)  # a matrix product takes 16 rows at least
    row_tiles = triton.cdiv(group * num_rows, rows)
    splits = min(
        triton.next_power_of_2(triton.cdiv(_PROGRAMS, batch * num_kv_heads * row_tiles)),
        triton.next_power_of_2(triton.cdiv(num_slots, slots)),
    )
    width = max(16, triton.next_power_of_2(head_dim))
    sizes = (splits, batch, num_heads, num_rows)
    partial = torch.empty(*sizes, head_dim, dtype=torch.float32, device=query.device)
    top, mass = torch.empty(2, *sizes, dtype=torch.float32, device=query.device)
    out = torch.empty(batch, num_rows, num_heads, head_dim, dtype=query.dtype, device=query.device)
    first = torch.zeros_like(limit) if first is None else first
    _attend[(batch * num_kv_heads, row_tiles, splits)](
        query,
        key,
        value,
        limit,
        first,
        limit if ancestors is None else ancestors,
        partial,
        top,
        mass,
        head_dim**-0.5 if scale is None else scale,
        num_kv_heads,
        num_rows,
        num_slots,
        limit.stride(0),
        first.stride(0),
        0 if ancestors is None else ancestors.stride(0),
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        GROUP=group,
        HEAD_DIM=head_dim,
        WIDTH=width,
        ROWS=rows,
        SLOTS=slots,
        TILES=triton.cdiv(num_slots, splits * slots),
        IS_TREE=ancestors is not None,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
    )
    _join[(batch * num_heads * num_rows,)](
        partial, top, mass, out, num_heads, num_rows, HEAD_DIM=head_dim, WIDTH=width, SPLITS=splits
    )
    return out.transpose(1, 2)
