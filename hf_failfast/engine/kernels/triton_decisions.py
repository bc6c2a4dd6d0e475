"""The two decisions of a round, each in one launch instead of a dozen, and one transfer to the host: how a chunk ends,
and what a verification adds. Reference: `reference.chunk_decision`, `reference.accept`."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .reference import RowOutcome


@triton.jit
def _is_end(token, eos_token_ids, NUM_EOS: tl.constexpr):  # type: ignore[no-untyped-def]
    found = token != token  # all False
    for e in range(NUM_EOS):
        found = found | (token == tl.load(eos_token_ids + e))
    return found


@triton.jit
def _decide(  # type: ignore[no-untyped-def]
    token_ids,  # (B, r)
    confidence,
    out,  # (B, 2): tokens to keep, whether to extend
    eos_token_ids,
    threshold,
    num_tokens,
    token_stride,
    confidence_stride,
    NUM_EOS: tl.constexpr,
    PLACES: tl.constexpr,
):
    row = tl.program_id(0)
    places = tl.arange(0, PLACES)
    is_place = places < num_tokens
    token = tl.load(token_ids + row * token_stride + places, mask=is_place, other=-1)
    sure = tl.load(confidence + row * confidence_stride + places, mask=is_place, other=float("inf"))
    is_end = _is_end(token, eos_token_ids, NUM_EOS)
    kept = tl.min(tl.where(is_end, places + 1, num_tokens), axis=0)
    stops = tl.max((is_end | ~(sure >= threshold)).to(tl.int32), axis=0)  # NaN is unsure
    tl.store(out + 2 * row, kept.to(tl.int64))
    tl.store(out + 2 * row + 1, (stops == 0).to(tl.int64))


@triton.jit
def _accept(  # type: ignore[no-untyped-def]
    draft_ids,  # (B, k)
    confidence,  # (B, k)
    token_ids,  # (B, k + 1)
    state,  # (3, B): draft lengths, lengths, finished
    out,  # (B, 4): accepted, emitted, finished, broken
    eos_token_ids,
    max_length,
    draft_stride,
    confidence_stride,
    token_stride,
    num_rows,
    num_drafted,
    NUM_EOS: tl.constexpr,
    PLACES: tl.constexpr,
):
    row = tl.program_id(0)
    places = tl.arange(0, PLACES)
    is_drafted = places < num_drafted
    token = tl.load(token_ids + row * token_stride + places, mask=places <= num_drafted, other=-1)
    drafted = tl.load(draft_ids + row * draft_stride + places, mask=is_drafted, other=-1)
    sure = tl.load(confidence + row * confidence_stride + places, mask=is_drafted, other=0.0)
    length = tl.load(state + num_rows + row)
    was_finished = tl.load(state + 2 * num_rows + row) != 0

    is_confirmed = (drafted == token) & (places < tl.load(state + row)) & is_drafted
    matched = tl.min(tl.where(is_confirmed, PLACES, places), axis=0)
    is_end = _is_end(token, eos_token_ids, NUM_EOS)
    first_end = tl.min(tl.where(is_end, places, PLACES), axis=0)

    emitted = tl.minimum(tl.minimum(matched, first_end) + 1, max_length - length)
    emitted = tl.where(was_finished, 0, emitted)
    finished = (first_end < emitted) | (length + emitted >= max_length) | was_finished
    tl.store(out + 4 * row, tl.minimum(matched, emitted).to(tl.int64))
    tl.store(out + 4 * row + 1, emitted.to(tl.int64))
    tl.store(out + 4 * row + 2, finished.to(tl.int64))
    tl.store(out + 4 * row + 3, tl.max((sure != sure).to(tl.int64), axis=0))


def chunk_decision(
    token_ids: torch.Tensor, confidence: torch.Tensor, threshold: float, eos_token_ids: torch.Tensor | None
) -> list[tuple[int, bool]]:
    """See `reference.chunk_decision`."""
    batch, num_tokens = token_ids.shape
    out = torch.empty(batch, 2, dtype=torch.int64, device=token_ids.device)
    num_eos = 0 if eos_token_ids is None else eos_token_ids.numel()
    _decide[(batch,)](
        token_ids,
        confidence,
        out,
        eos_token_ids if num_eos else out,
        threshold,
        num_tokens,
        token_ids.stride(0),
        confidence.stride(0),
        NUM_EOS=num_eos,
        PLACES=triton.next_power_of_2(max(num_tokens, 1)),
    )
    return [(kept, bool(extend)) for kept, extend in out.tolist()]


def accept(
    draft_ids: torch.Tensor,
    confidence: torch.Tensor,
    token_ids: torch.Tensor,
    draft_lengths: Sequence[int],
    lengths: Sequence[int],
    finished: Sequence[bool],
    max_length: int,
    eos_token_ids: torch.Tensor | None,
) -> list[RowOutcome]:
    """See `reference.accept`."""
    batch, num_drafted = draft_ids.shape
    device = token_ids.device
    # From pinned memory the copy does not wait for the forward launched before it.
    state = torch.tensor([draft_lengths, lengths, finished], dtype=torch.int64, pin_memory=device.type == "cuda")
    out = torch.empty(batch, 4, dtype=torch.int64, device=device)
    num_eos = 0 if eos_token_ids is None else eos_token_ids.numel()
    _accept[(batch,)](
        draft_ids,
        confidence,
        token_ids,
        state.to(device, non_blocking=True),
        out,
        eos_token_ids if num_eos else out,
        max_length,
        draft_ids.stride(0),
        confidence.stride(0),
        token_ids.stride(0),
        batch,
        num_drafted,
        NUM_EOS=num_eos,
        PLACES=triton.next_power_of_2(num_drafted + 1),
    )
    return [RowOutcome(matched, emitted, bool(end), bool(broken)) for matched, emitted, end, broken in out.tolist()]
