"""What a round adds to every sequence, in one launch instead of a dozen. Reference: `reference.accept`."""

import torch
import triton
import triton.language as tl

from .reference import Acceptance


@triton.jit
def _accept(  # type: ignore[no-untyped-def]
    draft_ids,  # (B, k)
    draft_lengths,
    token_ids,  # (B, k + 1)
    lengths,
    finished,
    out,  # (4, B): accepted, emitted, lengths, finished
    eos_token_ids,
    max_length,
    draft_stride,
    token_stride,
    batch,
    NUM_DRAFTED: tl.constexpr,
    NUM_EOS: tl.constexpr,
    PLACES: tl.constexpr,
):
    row = tl.program_id(0)
    places = tl.arange(0, PLACES)
    token = tl.load(token_ids + row * token_stride + places, mask=places <= NUM_DRAFTED, other=-1)
    drafted = tl.load(draft_ids + row * draft_stride + places, mask=places < NUM_DRAFTED, other=-1)
    length = tl.load(lengths + row)
    was_finished = tl.load(finished + row) != 0

    is_confirmed = (drafted == token) & (places < tl.load(draft_lengths + row)) & (places < NUM_DRAFTED)
    matched = tl.min(tl.where(is_confirmed, NUM_DRAFTED, places), axis=0)
    is_end = places < 0
    for e in range(NUM_EOS):
        is_end = is_end | (token == tl.load(eos_token_ids + e))
    first_end = tl.min(tl.where(is_end, places, PLACES), axis=0)

    room = tl.maximum(max_length - length, 0)
    emitted = tl.minimum(tl.minimum(matched, first_end) + 1, room)
    emitted = tl.where(was_finished, 0, emitted)
    ended = (first_end < emitted) | (length + emitted >= max_length) | was_finished
    tl.store(out + row, tl.minimum(matched, emitted).to(tl.int64))
    tl.store(out + batch + row, emitted.to(tl.int64))
    tl.store(out + 2 * batch + row, (length + emitted).to(tl.int64))
    tl.store(out + 3 * batch + row, ended.to(tl.int64))


def accept(
    draft_ids: torch.Tensor,
    draft_lengths: torch.Tensor,
    token_ids: torch.Tensor,
    lengths: torch.Tensor,
    finished: torch.Tensor,
    max_length: int,
    eos_token_ids: torch.Tensor | None,
) -> Acceptance:
    """See `reference.accept`."""
    batch, num_drafted = draft_ids.shape
    out = torch.empty(4, batch, dtype=torch.int64, device=token_ids.device)
    num_eos = 0 if eos_token_ids is None else eos_token_ids.numel()
    _accept[(batch,)](
        draft_ids.contiguous(),
        draft_lengths,
        token_ids.contiguous(),
        lengths,
        finished,
        out,
        eos_token_ids if num_eos else out,
        max_length,
        num_drafted,
        num_drafted + 1,
        batch,
        NUM_DRAFTED=num_drafted,
        NUM_EOS=num_eos,
        PLACES=triton.next_power_of_2(num_drafted + 1),
    )
    return Acceptance(*out)
