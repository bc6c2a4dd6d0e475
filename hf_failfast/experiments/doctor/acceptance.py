"""Acceptance by draft position: in decoding, and as training records and cards count it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...decoding.stats import SpecDecodingStats
from ...drafters import DraftRequest
from ...measure.methods import fixed
from ..replay import record_answer
from .subject import Subject

SHORTEST, LONGEST = 8, 16  # draft positions that are looked at


def num_positions(subject: Subject, promised: int) -> int:
    """Those of the promise, as many as a pass can fill."""
    inspection = subject.checkup.inspection
    bound = None if inspection is None else inspection.chunk_per_pass
    return min(max(promised, SHORTEST), LONGEST, bound or LONGEST)


def in_decoding(subject: Subject, length: int) -> list[float]:
    """The share of rounds that accept the first 1, 2, ... draft tokens, with drafts of `length` tokens in one pass."""
    assert subject.drafter is not None
    method = fixed(subject.drafter, subject.config.with_options({"chunk_length": length}))
    records = [record for prompt in subject.prompts for record in method.run(subject.target, prompt)]
    return accepted_shares(SpecDecodingStats.total([each.stats for each in records if each.stats is not None]))


def accepted_shares(stats: SpecDecodingStats) -> list[float]:
    """For 1, 2, ... tokens: of the rounds that drafted that many, the share that accepted them."""
    shares = []
    for length in range(1, max((record.drafted for record in stats.records), default=0) + 1):
        far = [record.accepted >= length for record in stats.records if record.drafted >= length]
        shares.append(sum(far) / len(far))
    return shares


def teacher_forced(
    subject: Subject,
    answers: Sequence[Sequence[int]],  # new ids, one per prompt
    length: int,
    on_progress: Callable[[float], None],
) -> list[float] | None:
    """The share of an answer's positions at which the first 1, 2, ... draft tokens are right: what a record or a card
    counts. It is higher than in decoding, where a round begins where the last draft was wrong.

    None for drafters that draft from hidden states or across tokenizers, and where texts outgrow the drafter's window.
    """
    drafter = subject.drafter
    assert drafter is not None
    session = drafter.start(DraftRequest(subject.target, capacity=1))
    if session.target_layers or subject.is_translated or not drafter.drafts_by_chunks:
        return None
    right: list[list[bool]] = []
    for done, (prompt, ids) in enumerate(zip(subject.prompts, answers, strict=True), 1):
        answer = torch.cat([prompt.ids, prompt.ids.new_tensor([ids])], dim=1)
        if not drafter.window or answer.shape[1] + length <= drafter.window:
            found = record_answer(subject.target, drafter, prompt.ids.shape[1], answer, length)
            right += [is_right for _, is_right in found]
        on_progress(done / len(subject.prompts))
    reached = [[all(each[:n]) for each in right if len(each) >= n] for n in range(1, length + 1)]
    return [sum(each) / len(each) for each in reached if each] or None
