"""What each kernel computes, in torch: the definition, the path without Triton, and what the tests compare with."""

from typing import NamedTuple

import torch


def most_likely(logits: torch.Tensor, vocab_size: int, mask_token_id: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Admissible ids and their probability under the drafter's whole distribution, both (B, r), from (B, r, V).

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
) -> torch.Tensor:
    """FailFast's rule on a chunk of ids and confidences, both (B, r): (B, 2), how many tokens to keep (up to the first
    end of sequence) and whether another chunk follows (all confidences >= threshold, no end of sequence).
    """
    count = token_ids.shape[1]
    is_end = torch.zeros_like(token_ids, dtype=torch.bool)
    if eos_token_ids is not None:
        is_end = torch.isin(token_ids, eos_token_ids)
    places = torch.arange(1, count + 1, device=token_ids.device)
    kept = torch.where(is_end, places, count).amin(dim=1) if count else places.new_zeros(len(token_ids))
    extend = (confidence >= threshold).all(dim=1) & ~is_end.any(dim=1)
    return torch.stack([kept, extend.long()], dim=1)


class Acceptance(NamedTuple):
    """What a round adds to each of B sequences, all int64 (B,)."""

    accepted: torch.Tensor  # draft tokens that stay
    emitted: torch.Tensor  # tokens the sequence grows by: accepted draft tokens, then the bonus token
    lengths: torch.Tensor  # of the sequences afterwards
    finished: torch.Tensor  # 1 where the sequence is complete


def accept(
    draft_ids: torch.Tensor,
    draft_lengths: torch.Tensor,
    token_ids: torch.Tensor,
    lengths: torch.Tensor,
    finished: torch.Tensor,
    max_length: int,
    eos_token_ids: torch.Tensor | None,
) -> Acceptance:
    """Longest match of each draft with the target's own tokens, cut at the first end of sequence and at `max_length`.

    draft_ids: (B, k), of which sequence b has drafted the first `draft_lengths[b]`.
    token_ids: (B, k + 1), the target's choice after the prefix and after each draft token.
    lengths, finished: (B,) before the round; a finished sequence does not change.
    """
    places = torch.arange(token_ids.shape[1], device=token_ids.device)
    matches = (draft_ids == token_ids[:, :-1]) & (places[:-1] < draft_lengths[:, None])
    matched = matches.long().cumprod(dim=1).sum(dim=1)
    behind_end = torch.zeros_like(token_ids)
    if eos_token_ids is not None:
        behind_end[:, 1:] = torch.isin(token_ids[:, :-1], eos_token_ids).long().cumsum(dim=1)
    allowed = (places <= matched[:, None]) & (behind_end == 0) & (lengths[:, None] + places < max_length)
    emitted = (allowed & (finished == 0)[:, None]).sum(dim=1)
    ended = lengths + emitted >= max_length
    if eos_token_ids is not None:
        last = token_ids.gather(1, (emitted - 1).clamp(min=0)[:, None])[:, 0]
        ended |= (emitted > 0) & torch.isin(last, eos_token_ids)
    return Acceptance(torch.minimum(matched, emitted), emitted, lengths + emitted, (ended | (finished != 0)).long())


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    limit: torch.Tensor,
    first: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Grouped-query attention in which row i of sequence b sees the slots `first[b, i]` <= slot < `limit[b, i]`.

    query: (B, H, q, D); key, value: (B, H / group, S, D); limit, first: (B, q), `first` None for 0.
    scale: of the scores, 1 / sqrt(D) if None. Returns (B, H, q, D), zeros in rows that see nothing.
    """
    slots = torch.arange(key.shape[2], device=key.device)
    visible = slots < limit[..., None]
    if first is not None:
        visible &= slots >= first[..., None]
    attended = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible[:, None], scale=scale, enable_gqa=True
    )
    return torch.where(visible.any(dim=-1)[:, None, :, None], attended, 0.0)
