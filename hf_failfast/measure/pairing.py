"""From answers to records: an answer alone, or beside plain decoding's answer to the same prompt."""

from itertools import zip_longest
from typing import Any

import torch
from transformers import PreTrainedModel

from ..engine.causal_lm import takes_logits_to_keep
from ..eval.options import Latencies
from .arms import Answer
from .records import SpeedRecord


def speed_record(method: str, answer: Answer, latencies: Latencies | None = None) -> SpeedRecord:
    """The record of an answer that is not compared."""
    return SpeedRecord(**_fields(method, answer, latencies))


def paired_record(
    method: str,
    answer: Answer,
    plain: Answer,
    model: PreTrainedModel,
    prompt_ids: torch.Tensor,  # (1, n), without padding
    is_greedy: bool,
    latencies: Latencies | None = None,
) -> SpeedRecord:
    """The record of an answer beside plain decoding's. Sampled answers differ by chance: they are not compared."""
    fields = _fields(method, answer, latencies) | {
        "plain_seconds": plain.seconds,
        "plain_tokens": len(plain.token_ids),
    }
    if is_greedy:
        fields["identical"] = answer.token_ids == plain.token_ids
        if not fields["identical"]:
            fields["first_difference_margin"] = difference_margin(model, prompt_ids, answer.token_ids, plain.token_ids)
    return SpeedRecord(**fields)


@torch.no_grad()
def difference_margin(
    model: PreTrainedModel, prompt_ids: torch.Tensor, token_ids: list[int], plain_ids: list[int]
) -> float:
    """The target's gap between its two largest logits, in fp32, where two different answers to a prompt part.

    Recomputed in one forward over what they share; decoding itself may have rounded differently, which is the point.
    """
    shared = next(index for index, (a, b) in enumerate(zip_longest(token_ids, plain_ids)) if a != b)
    prefix = torch.cat([prompt_ids, prompt_ids.new_tensor([plain_ids[:shared]])], dim=1)
    kept = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    best, second = model(input_ids=prefix, **kept).logits[0, -1].float().topk(2).values.tolist()
    return best - second


def _fields(method: str, answer: Answer, latencies: Latencies | None) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "method": method,
        "seconds": answer.seconds,
        "new_tokens": len(answer.token_ids),
        "peak_memory_mib": answer.peak_memory_mib,
        "rounds": answer.rounds,
        "drafter_passes": answer.drafter_passes,
    }
    if latencies is not None:
        fields |= {"target_latency_ms": latencies.target_ms, "drafter_latency_ms": latencies.drafter_ms}
    if answer.stats is not None:
        fields |= {
            "drafted": answer.stats.drafted,
            "accepted": answer.stats.accepted,
            "draft_seconds": answer.stats.draft_seconds,
            "verify_seconds": answer.stats.verify_seconds,
        }
    return fields
