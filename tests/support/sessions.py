"""Calls drafters and runners on one sequence, or on several of one length."""

import torch
from transformers import PreTrainedModel

from hf_failfast.drafters import DiffusionDrafter, Draft, DraftRequest, DraftSession
from hf_failfast.drafters.chunks import Chunk, ChunkedSession
from hf_failfast.engine.ragged import RaggedIds
from hf_failfast.engine.runner import EagerRunner
from hf_failfast.engine.slot_cache import SlotCache
from hf_failfast.engine.window import Sight, Window
from hf_failfast.policies import LengthPolicy


def session_of(
    drafter: DiffusionDrafter, target: PreTrainedModel, capacity: int, eos_token_ids: torch.Tensor | None = None
) -> DraftSession:
    return drafter.start(DraftRequest(target, capacity, eos_token_ids=eos_token_ids))


def draft_of(session: DraftSession, token_ids: torch.Tensor, policy: LengthPolicy, max_tokens: int) -> Draft:
    return session.draft(RaggedIds.full(token_ids), policy, [max_tokens] * len(token_ids))


def chunk_of(session: ChunkedSession, token_ids: torch.Tensor, drafted: torch.Tensor, length: int) -> Chunk:
    session.lengths = [token_ids.shape[1]] * len(token_ids)
    return session.draft_chunk(RaggedIds.full(torch.cat([token_ids, drafted], dim=1)), length)


def logits_of(
    runner: EagerRunner,
    input_ids: torch.Tensor,
    cache: SlotCache,
    read: int | torch.Tensor,
    limit: torch.Tensor | None = None,
) -> torch.Tensor:
    window = Window(input_ids, cache.lengths, read, None if limit is None else Sight(limit))
    return runner.run(window, cache).outputs[0]
