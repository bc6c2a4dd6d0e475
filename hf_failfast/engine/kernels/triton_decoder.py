"""What a Llama-like decoder layer does between its matrix products, one launch each. References: `reference.embed`,
`add_norm`, `rotate_and_store` and `swiglu`.

Each does in fp32 what the model does in its own dtype, and rounds where the model stores a result. Rows lie in memory
without gaps unless their reference says otherwise; elements of a row always do.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 1024  # elements of a row that one program handles where rows can be cut


@triton.jit
def _embed(  # type: ignore[no-untyped-def]
    input_ids,
    weight,
    mask_embedding,
    into,
    mask_token_id,
    width,
    stride_into,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < width
    token = tl.load(input_ids + row).to(tl.int64)
    element = into.dtype.element_ty
    if MASKED:
        is_mask = token == mask_token_id
        known = tl.load(weight + token * width + columns, mask=is_column & (token != mask_token_id), other=0.0)
        masked = tl.load(mask_embedding + columns, mask=is_column & is_mask, other=0.0)
        values = tl.where(is_mask, masked.to(tl.float32), known.to(tl.float32))
    else:
        values = tl.load(weight + token * width + columns, mask=is_column, other=0.0).to(tl.float32)
    tl.store(into + row * stride_into + columns, values.to(element), mask=is_column)


def embed(
    input_ids: torch.Tensor,
    weight: torch.Tensor,
    mask_token_id: int | None,
    mask_embedding: torch.Tensor | None,
    into: torch.Tensor,
) -> None:
    """See `reference.embed`."""
    num_rows, width = into.shape
    _embed[(num_rows, triton.cdiv(width, _BLOCK))](
        input_ids,
        weight,
        weight if mask_embedding is None else mask_embedding,
        into,
        -1 if mask_token_id is None else mask_token_id,
        width,
        into.stride(0),
        MASKED=mask_embedding is not None,
        BLOCK=_BLOCK,
    )


@triton.jit
def _add_norm(  # type: ignore[no-untyped-def]
    residual,
    delta,
    weight,
    summed,
    normed,
    width,
    stride_residual,
    stride_summed,
    stride_normed,
    epsilon,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_column = columns < width
    element = residual.dtype.element_ty
    values = tl.load(residual + row * stride_residual + columns, mask=is_column, other=0.0).to(tl.float32)
    if ADDS:
        values += tl.load(delta + row * width + columns, mask=is_column, other=0.0).to(tl.float32)
        stored = values.to(element)
        tl.store(summed + row * stride_summed + columns, stored, mask=is_column)
        values = stored.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / width + epsilon)
    values = (values * scale).to(element).to(tl.float32)
    values *= tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    tl.store(normed + row * stride_normed + columns, values.to(element), mask=is_column)


def add_norm(
    residual: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    epsilon: float,
    summed: torch.Tensor,
    normed: torch.Tensor,
) -> None:
    """See `reference.add_norm`."""
    num_rows, width = residual.shape
    block = triton.next_power_of_2(width)
    _add_norm[(num_rows,)](
        residual,
        residual if delta is None else delta,
        weight,
        summed,
        normed,
        width,
        residual.stride(0),
        summed.stride(0),
        normed.stride(0),
        epsilon,
        ADDS=delta is not None,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
    )


@triton.jit
def _rotate_and_store(  # type: ignore[no-untyped-def]
    projected,
    cosines,
    sines,
    starts,
    query,
    keys,
    values,
    query_weight,
    key_weight,
    epsilon,
    num_tokens,  # per sequence
    stride_kb,
    stride_kh,
    stride_ks,
    stride_vb,
    stride_vh,
    stride_vs,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,  # of HEAD_DIM, rounded up to a power of two
    NORMS: tl.constexpr,
):
    """One head of one token. Every program computes all that any kind of head needs; the stores choose."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    batch = row // num_tokens
    position = tl.load(starts + batch) + row % num_tokens
    is_query = head < QUERY_HEADS
    is_value = head >= QUERY_HEADS + KV_HEADS
    half: tl.constexpr = HEAD_DIM // 2
    dims = tl.arange(0, HALF)
    is_dim = dims < half
    element = projected.dtype.element_ty

    at = projected + (row * (QUERY_HEADS + 2 * KV_HEADS) + head) * HEAD_DIM + dims
    low_given = tl.load(at, mask=is_dim, other=0.0)
    high_given = tl.load(at + half, mask=is_dim, other=0.0)
    low = low_given.to(tl.float32)
    high = high_given.to(tl.float32)
    if NORMS:
        scale = tl.rsqrt((tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)) / HEAD_DIM + epsilon)
        of_query = is_dim & is_query
        of_key = is_dim & (head >= QUERY_HEADS)
        low_weight = tl.load(query_weight + dims, mask=of_query, other=0.0).to(tl.float32)
        low_weight += tl.load(key_weight + dims, mask=of_key, other=0.0).to(tl.float32)
        high_weight = tl.load(query_weight + half + dims, mask=of_query, other=0.0).to(tl.float32)
        high_weight += tl.load(key_weight + half + dims, mask=of_key, other=0.0).to(tl.float32)
        low = ((low * scale).to(element).to(tl.float32) * low_weight).to(element).to(tl.float32)
        high = ((high * scale).to(element).to(tl.float32) * high_weight).to(element).to(tl.float32)

    table = position * HEAD_DIM + dims
    low_cosine = tl.load(cosines + table, mask=is_dim, other=0.0).to(tl.float32)
    high_cosine = tl.load(cosines + table + half, mask=is_dim, other=0.0).to(tl.float32)
    low_sine = tl.load(sines + table, mask=is_dim, other=0.0).to(tl.float32)
    high_sine = tl.load(sines + table + half, mask=is_dim, other=0.0).to(tl.float32)
    low_turned = (low * low_cosine).to(element).to(tl.float32) + (-high * low_sine).to(element).to(tl.float32)
    high_turned = (high * high_cosine).to(element).to(tl.float32) + (low * high_sine).to(element).to(tl.float32)
    low_turned = low_turned.to(element)
    high_turned = high_turned.to(element)

    query_at = query + (row * QUERY_HEADS + head) * HEAD_DIM + dims
    tl.store(query_at, low_turned, mask=is_dim & is_query)
    tl.store(query_at + half, high_turned, mask=is_dim & is_query)
    key_head = head - QUERY_HEADS
    is_key = (head >= QUERY_HEADS) & (head < QUERY_HEADS + KV_HEADS)
    key_at = keys + batch * stride_kb + key_head * stride_kh + position * stride_ks + dims
    tl.store(key_at, low_turned, mask=is_dim & is_key)
    tl.store(key_at + half, high_turned, mask=is_dim & is_key)
    value_at = values + batch * stride_vb + (key_head - KV_HEADS) * stride_vh + position * stride_vs + dims
    tl.store(value_at, low_given, mask=is_dim & is_value)
    tl.store(value_at + half, high_given, mask=is_dim & is_value)


def rotate_and_store(
    projected: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    starts: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    head_norms: tuple[torch.Tensor, torch.Tensor] | None,
    epsilon: float,
) -> torch.Tensor:
    """See `reference.rotate_and_store`."""
    num_rows, num_kv_heads, _, head_dim = keys.shape
    num_heads = projected.shape[1] // head_dim - 2 * num_kv_heads
    num_tokens = len(projected) // num_rows
    query = projected.new_empty(num_rows, num_tokens, num_heads, head_dim)
    query_weight, key_weight = (projected, projected) if head_norms is None else head_norms
    _rotate_and_store[(len(projected), num_heads + 2 * num_kv_heads)](
        projected,
        cosines,
        sines,
        starts,
        query,
        keys,
        values,
        query_weight,
        key_weight,
        epsilon,
        num_tokens,
        *keys.stride()[:3],
        *values.stride()[:3],
        QUERY_HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HALF=triton.next_power_of_2(head_dim // 2),
        NORMS=head_norms is not None,
        num_warps=1,
    )
    return query


@triton.jit
def _swiglu(projected, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < width
    at = projected + row * 2 * width + columns
    gate = tl.load(at, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(at + width, mask=is_column, other=0.0).to(tl.float32)
    activated = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + columns, (activated * up).to(out.dtype.element_ty), mask=is_column)


def swiglu(projected: torch.Tensor) -> torch.Tensor:
    """See `reference.swiglu`."""
    num_rows, width = len(projected), projected.shape[1] // 2
    out = projected.new_empty(num_rows, width)
    _swiglu[(num_rows, triton.cdiv(width, _BLOCK))](projected, out, width, BLOCK=_BLOCK)
    return out
