"""What each kernel computes, in torch: the definition, the path without Triton, and what the tests compare with."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


def most_likely(logits: torch.Tensor, vocab_size: int, mask_token_id: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Best admissible ids and their probability under the drafter's whole distribution, both (B, r), from (B, r, V).

    The mask token and ids the target does not know (>= vocab_size) are not admissible; their mass counts as doubt.
    The first of equal logits wins; NaN wins over all, with a confidence of NaN.
    """
    values = logits.float()
    probs = values.softmax(dim=-1)
    if mask_token_id is not None and mask_token_id < vocab_size:
        values = values.clone() if values is logits else values
        values[..., mask_token_id] = -torch.inf
        probs[..., mask_token_id] = 0.0
    ids = values[..., :vocab_size].argmax(dim=-1, keepdim=True)
    return ids[..., 0], probs.gather(-1, ids)[..., 0]


def chunk_decision(
    token_ids: torch.Tensor, confidence: torch.Tensor, threshold: float, eos_token_ids: torch.Tensor | None
) -> list[tuple[int, bool]]:
    """FailFast's rule on a chunk of ids and confidences, both (B, r): per sequence, how many tokens to keep (up to the
    first end of sequence) and whether another chunk follows (all confidences >= threshold, no end of sequence).

    The answer is on the host, in one transfer.
    """
    is_sure = (confidence >= threshold).all(dim=1, keepdim=True)
    rows = torch.cat([is_sure, _is_end(token_ids, eos_token_ids)], dim=1).tolist()  # the transfer
    return [(_up_to_end(is_end), sure and not any(is_end)) for sure, *is_end in rows]


class RowOutcome(NamedTuple):
    """What a round adds to a sequence."""

    accepted: int  # draft tokens that stay
    emitted: int  # tokens the sequence grows by: accepted draft tokens, then the bonus token
    finished: bool
    broken: bool = False  # a confidence of the draft is NaN
    path: Sequence[int] | None = None  # the accepted nodes of a tree; None: the draft was none

    @property
    def cached(self) -> int:
        """Emitted tokens whose K/V the round has computed: the last token's come with the next round."""
        return max(self.emitted - 1, 0)

    @property
    def kept(self) -> int:
        """Draft tokens whose K/V the drafter may keep."""
        return min(self.accepted, self.cached)


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
    """Longest match of each draft with the target's own tokens, cut at the first end of sequence and at `max_length`.

    draft_ids, confidence: (B, k); the draft of sequence b is the first `draft_lengths[b]`.
    token_ids: (B, k + 1), the target's choice after the prefix and after each draft token.
    lengths, finished: of the B sequences before the round; a finished one does not change.

    The emitted tokens are the first of `token_ids`: each is the target's own choice after a prefix of such choices. So
    with greedy choices the text is plain greedy decoding's, and with sampled ones it is distributed as plain
    sampling's. The answer is on the host, in one transfer.
    """
    is_broken = confidence.isnan().any(dim=1, keepdim=True)
    columns = [draft_ids, token_ids, _is_end(token_ids, eos_token_ids), is_broken]
    rows = torch.cat([column.to(token_ids) for column in columns], dim=1).tolist()  # the transfer
    longest = draft_ids.shape[1]
    outcome = []
    for row, num_drafted, length, was_finished in zip(rows, draft_lengths, lengths, finished, strict=True):
        drafted, own, is_end = row[:longest], row[longest : 2 * longest + 1], row[2 * longest + 1 : -1]
        matched = 0
        while matched < num_drafted and drafted[matched] == own[matched]:
            matched += 1
        emitted = 0 if was_finished else min(_up_to_end(is_end[: matched + 1]), max_length - length)
        is_finished = was_finished or length + emitted >= max_length or any(is_end[:emitted])
        outcome.append(RowOutcome(min(matched, emitted), emitted, is_finished, bool(row[-1])))
    return outcome


def _is_end(token_ids: torch.Tensor, eos_token_ids: torch.Tensor | None) -> torch.Tensor:
    """Which of the tokens end a sequence, bools of the same shape."""
    if eos_token_ids is None:
        return torch.zeros_like(token_ids, dtype=torch.bool)
    return (token_ids[..., None] == eos_token_ids).any(dim=-1)


def _up_to_end(is_end: Sequence[int]) -> int:
    """Number of tokens up to and with the first end of sequence; all without one."""
    return next((count for count, end in enumerate(is_end, start=1) if end), len(is_end))


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    limit: torch.Tensor,
    first: torch.Tensor | None = None,
    scale: float | None = None,
    ancestors: torch.Tensor | None = None,
) -> torch.Tensor:
    """Grouped-query attention in which token i of sequence b sees the slots `first[b, i]` <= slot < `limit[b, i]`, and
    slot `limit[b, i]` + j if bit j of `ancestors[b, i]` is set.

    query: (B, H, q, D); key, value: (B, H / group, S, D); limit, first, ancestors: (B, q) int64, `first` None for 0,
    `ancestors` None for no bit. scale: of the scores, 1 / sqrt(D) if None. Returns (B, H, q, D), zeros for tokens that
    see nothing.
    """
    slots = torch.arange(key.shape[2], device=key.device)
    visible = slots < limit[..., None]
    if first is not None:
        visible &= slots >= first[..., None]
    if ancestors is not None:
        bit = slots - limit[..., None]
        visible |= (bit >= 0) & (bit < 64) & ((ancestors[..., None] >> bit.clamp(0, 63)) & 1 == 1)
    attended = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible[:, None], scale=scale, enable_gqa=True
    )
    return torch.where(visible.any(dim=-1)[:, None, :, None], attended, 0.0)


# A Llama-like decoder layer, with the roundings of transformers' modules: a result is rounded to the model's dtype
# wherever they store one.


def embed(
    input_ids: torch.Tensor,
    weight: torch.Tensor,
    mask_token_id: int | None,
    mask_embedding: torch.Tensor | None,
    into: torch.Tensor,
) -> None:
    """Writes the embeddings of N tokens (N,), rows of `weight` (V, width), into (N, width), whose rows may be apart.

    mask_embedding: (width,), that of the mask token, which `weight` need not have; both None if there is none.
    """
    if mask_embedding is None:
        into.copy_(weight[input_ids])
        return
    assert mask_token_id is not None
    is_mask = input_ids.eq(mask_token_id)
    known = weight[input_ids.masked_fill(is_mask, 0)].to(into.dtype)
    into.copy_(torch.where(is_mask[:, None], mask_embedding, known))


def add_norm(
    residual: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    epsilon: float,
    summed: torch.Tensor,
    normed: torch.Tensor,
) -> None:
    """Writes residual + delta into `summed`, which may be `residual` itself, and its RMSNorm into `normed`.

    All are (N, width); rows of `residual`, `summed` and `normed` may be apart. weight: (width,). Without a delta the
    residual is the sum, and `summed` stays as it is.
    """
    if delta is not None:
        summed.copy_(residual + delta)
        residual = summed
    normed.copy_(rms_norm(residual, weight, epsilon))


def rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMSNorm over the last dimension, in fp32 up to the product with the weight."""
    values = states.float()
    values = values * torch.rsqrt(values.square().mean(dim=-1, keepdim=True) + epsilon)
    return weight * values.to(states.dtype)


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
    """Queries with their rotary embedding; keys, with theirs, and values go to their slots.

    projected: (B * q, heads * D), side by side the query, key and value heads of q tokens of B sequences.
    cosines, sines: (positions, D). starts: (B, 1), the position, and so the slot, of each sequence's first token.
    keys, values: the slots, (B, key heads, slots, D).
    head_norms: weights (D,) of the RMSNorm of queries and of keys, before the rotation; None if there is none.
    Returns (B, q, query heads, D).
    """
    num_rows, num_kv_heads, _, head_dim = keys.shape
    states = projected.unflatten(0, (num_rows, -1)).unflatten(-1, (-1, head_dim))  # (B, q, heads, D)
    query, key, value = states.split([states.shape[2] - 2 * num_kv_heads, num_kv_heads, num_kv_heads], dim=2)
    positions = starts + torch.arange(states.shape[1], device=starts.device)
    if head_norms is not None:
        query, key = (rms_norm(each, weight, epsilon) for each, weight in zip((query, key), head_norms, strict=True))
    rotation = cosines[positions][:, :, None], sines[positions][:, :, None]
    row = torch.arange(num_rows, device=starts.device)[:, None]
    keys[row, :, positions] = _rotate(key, *rotation)
    values[row, :, positions] = value
    return _rotate(query, *rotation)


def _rotate(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    low, high = states.chunk(2, dim=-1)
    return states * cosines + torch.cat([-high, low], dim=-1) * sines


def swiglu(projected: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, (N, width), of gate and up side by side, (N, 2 * width)."""
    gate, up = projected.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up
