"""Confidence and token of a drafter pass: one read of the logits, split over the vocabulary.

A softmax over 150,000 entries by one thread block per position would leave most of a GPU idle, since a pass reads few
positions. So `_scan` gives each part of a position's logits to its own block, and `_combine` joins the parts. Logits
of any dtype are read once and never converted in memory. Reference: `reference.most_likely`.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 1024
_PROGRAMS = 512  # a few thread blocks per multiprocessor of a large GPU


@triton.jit
def _scan(  # type: ignore[no-untyped-def]
    logits,
    row_stride,
    maximum,  # this and the next three: (B * r, SPLITS)
    total,
    best,
    index,
    width,
    vocab_size,
    mask_token_id,
    SPLITS: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One part of a position's logits: maximum, sum of exp(x - maximum), best admissible entry (NaN above all)."""
    none = 2147483647
    row = tl.program_id(0)
    split = tl.program_id(1)
    top = -float("inf")
    mass = 0.0
    best_value = -float("inf")
    best_id = none
    nan_id = none
    for tile in range(TILES):
        ids = (split * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(logits + row.to(tl.int64) * row_stride + ids, mask=ids < width, other=-float("inf"))
        x = x.to(tl.float32)

        new_top = tl.maximum(top, tl.max(tl.where(x == x, x, -float("inf")), axis=0))
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)  # -inf - -inf is NaN
        mass = mass * tl.exp(top - shift) + tl.sum(tl.exp(x - shift), axis=0)
        top = new_top

        x = tl.where(ids == mask_token_id, -float("inf"), x)
        is_nan = (x != x) & (ids < vocab_size)
        is_number = (x == x) & (ids < vocab_size)
        tile_best = tl.max(tl.where(is_number, x, -float("inf")), axis=0)
        tile_id = tl.min(tl.where(is_number & (x == tile_best), ids, none), axis=0)
        is_better = (tile_best > best_value) | (best_id == none)
        best_id = tl.where(is_better, tile_id, best_id)
        best_value = tl.maximum(best_value, tile_best)
        nan_id = tl.minimum(nan_id, tl.min(tl.where(is_nan, ids, none), axis=0))

    out = row * SPLITS + split
    tl.store(maximum + out, top)
    tl.store(total + out, mass)
    tl.store(best + out, tl.where(nan_id < none, float("nan"), best_value))
    tl.store(index + out, tl.where(nan_id < none, nan_id, best_id))


@triton.jit
def _combine(  # type: ignore[no-untyped-def]
    maximum,
    total,
    best,
    index,
    token_ids,  # (B, r) int64
    confidence,  # (B, r) fp32
    num_rows,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Joins the parts of every position of one sequence."""
    none = 2147483647
    sequence = tl.program_id(0)
    rows = tl.arange(0, ROWS)
    is_row = rows < num_rows
    parts = (sequence * num_rows + rows[:, None]) * SPLITS + tl.arange(0, SPLITS)[None, :]
    tops = tl.load(maximum + parts, mask=is_row[:, None], other=0.0)
    masses = tl.load(total + parts, mask=is_row[:, None], other=1.0)
    bests = tl.load(best + parts, mask=is_row[:, None], other=0.0)
    ids = tl.load(index + parts, mask=is_row[:, None], other=0)

    top = tl.max(tops, axis=1)
    shift = tl.where(top == -float("inf"), 0.0, top)
    mass = tl.sum(masses * tl.exp(tops - shift[:, None]), axis=1)

    is_number = bests == bests
    best_value = tl.max(tl.where(is_number, bests, -float("inf")), axis=1)
    best_id = tl.min(tl.where(is_number & (bests == best_value[:, None]), ids, none), axis=1)
    nan_id = tl.min(tl.where(is_number, none, ids), axis=1)
    token = tl.where(nan_id < none, nan_id, best_id)
    sure = tl.where(nan_id < none, float("nan"), tl.exp(best_value - shift) / mass)
    tl.store(token_ids + sequence * num_rows + rows, token.to(tl.int64), mask=is_row)
    tl.store(confidence + sequence * num_rows + rows, sure, mask=is_row)


def most_likely(logits: torch.Tensor, vocab_size: int, mask_token_id: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.most_likely`."""
    batch, num_rows, width = logits.shape
    device = logits.device
    token_ids = torch.empty(batch, num_rows, dtype=torch.int64, device=device)
    confidence = torch.empty(batch, num_rows, dtype=torch.float32, device=device)
    if not num_rows:
        return token_ids, confidence
    flat = logits.reshape(batch * num_rows, width)
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    splits = min(
        triton.next_power_of_2(triton.cdiv(_PROGRAMS, len(flat))), triton.next_power_of_2(width // _BLOCK + 1)
    )
    parts = torch.empty(3, len(flat), splits, dtype=torch.float32, device=device)
    index = torch.empty(len(flat), splits, dtype=torch.int32, device=device)
    _scan[(len(flat), splits)](
        flat,
        flat.stride(0),
        *parts,
        index,
        width,
        min(vocab_size, width),
        -1 if mask_token_id is None else mask_token_id,
        SPLITS=splits,
        TILES=triton.cdiv(width, splits * _BLOCK),
        BLOCK=_BLOCK,
    )
    _combine[(batch,)](
        *parts,
        index,
        token_ids,
        confidence,
        num_rows,
        SPLITS=splits,
        ROWS=triton.next_power_of_2(num_rows),
    )
    return token_ids, confidence
