"""Real compute with a recorded acceptance: for pairs whose weights are not at hand.

A record holds texts; a text holds, for every position of an answer, what a drafter proposed there in one pass after
the true text: the confidence of each token of the chunk, and whether it was the target's. Replayed, the drafter's
forwards are made all the same, but its tokens and confidences are those of the record: the target's own text, made
wrong where the record was wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..drafters import DiffusionDrafter, DraftRequest, DraftSession, PerRow, RaggedIds, Wrapper
from ..drafters.chunks import Chunk, ChunkedSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Per position: (confidences, whether right), of the chunk that begins there.
Position = tuple[list[float], list[bool]]


def record(
    target: PreTrainedModel,
    drafter: DiffusionDrafter,
    prompts: Sequence[torch.Tensor],  # (1, n) each
    max_new_tokens: int,
    chunk_length: int,
) -> list[list[Position]]:
    """The acceptance of a real pair on the target's own greedy answers, one text per prompt."""
    answers = [target.generate(prompt, do_sample=False, max_new_tokens=max_new_tokens) for prompt in prompts]
    pairs = zip(prompts, answers, strict=True)
    return [record_answer(target, drafter, prompt.shape[1], answer, chunk_length) for prompt, answer in pairs]


@torch.no_grad()
def record_answer(
    target: PreTrainedModel,
    drafter: DiffusionDrafter,
    prompt_length: int,
    answer: torch.Tensor,  # (1, n), prompt included
    chunk_length: int,
) -> list[Position]:
    """What the drafter proposes at every position of a known answer, after the true text before it."""
    session = drafter.start(DraftRequest(target, answer.shape[1] + chunk_length))
    if not isinstance(session, ChunkedSession):
        raise ValueError("Only a drafter that drafts by chunks can be recorded.")
    positions: list[Position] = []
    for length in range(prompt_length, answer.shape[1]):
        session.lengths = [length]
        chunk = session.draft_chunk(RaggedIds.full(answer[:, :length]), chunk_length)
        session.accept([0])
        truth = answer[0, length : length + chunk_length]
        count = len(truth)
        is_right = chunk.token_ids[0, :count].to(truth.device) == truth
        positions.append((chunk.confidence[0, :count].tolist(), is_right.tolist()))
    return positions


def save(path: Path, texts: list[list[Position]], pair: dict[str, str]) -> None:
    """Writes a record and the names of the pair it was made with."""
    path.write_text(json.dumps({"pair": pair, "texts": texts}) + "\n", encoding="utf-8")


def load(path: Path) -> list[list[Position]]:
    """The texts of a record. Raises ValueError if the file holds something else."""
    document = json.loads(path.read_text(encoding="utf-8"))
    try:
        texts = [[(list(confidence), list(right)) for confidence, right in text] for text in document["texts"]]
    except (TypeError, KeyError, ValueError):
        texts = []
    is_record = bool(texts) and all(text and all(len(c) == len(r) > 0 for c, r in text) for text in texts)
    if not is_record:
        raise ValueError(
            f"`replay` must name a JSON file with `texts`, lists of [confidences, whether right] per position, "
            f"but {path} is none; `hf-failfast bench --record FILE` writes one."
        )
    return texts


def replayed(
    target: PreTrainedModel,
    drafter: DiffusionDrafter,
    texts: list[list[Position]],
    prompts: Sequence[torch.Tensor],  # (1, n) each
    max_new_tokens: int,
) -> ReplayDrafter:
    """The drafter that replays a record while these prompts are answered."""
    answers = [target.generate(ids, do_sample=False, max_new_tokens=max_new_tokens) for ids in prompts]
    return ReplayDrafter(
        drafter, texts, [(ids.shape[1], answer) for ids, answer in zip(prompts, answers, strict=True)]
    )


class ReplayDrafter(Wrapper):
    """A drafter whose forwards are real and whose drafts are a record's.

    answers: the target's own text of every prompt that will be asked, prompt included, (1, n), with its length.
    """

    def __init__(
        self, drafter: DiffusionDrafter, texts: list[list[Position]], answers: Sequence[tuple[int, torch.Tensor]]
    ) -> None:
        super().__init__(drafter)
        self.texts = texts
        self.answers = answers

    def start(self, request: DraftRequest) -> DraftSession:
        return PerRow.of(request, self._start)

    def _start(self, request: DraftRequest) -> ReplaySession:
        inner = self.drafter.start(replace(request, eos_token_ids=None, warp=None))
        if not isinstance(inner, ChunkedSession) or inner.target_layers:
            raise ValueError("Only a drafter that drafts by chunks, without the target's states, can be replayed.")
        return ReplaySession(self, inner, request.target.config.get_text_config(decoder=True).vocab_size)


class ReplaySession(ChunkedSession):
    """Runs the inner session and puts the record's draft in the place of its own."""

    def __init__(self, drafter: ReplayDrafter, inner: ChunkedSession, vocab_size: int) -> None:
        super().__init__(None)
        self.drafter = drafter
        self.inner = inner
        self.vocab_size = vocab_size

    def draft_chunk(self, known: RaggedIds, length: int) -> Chunk:
        self.inner.lengths = self.lengths
        chunk = self.inner.draft_chunk(known, length)
        (start,) = known.lengths
        token_ids = known.ids[:, : self.lengths[0]]
        index, prompt_length, answer = self._answer(token_ids)
        text = self.drafter.texts[index % len(self.drafter.texts)]
        confidence, is_right = text[(start - prompt_length) % len(text)]
        missing = [0] * max(length - len(confidence), 0)
        values = torch.tensor([[*confidence, *missing][:length]], dtype=torch.float32, device=token_ids.device)
        wrong = torch.tensor([[not right for right in [*is_right, *missing]][:length]], device=token_ids.device)
        ids = token_ids.new_zeros(1, length)
        right = answer[:, start : start + length].to(token_ids.device)
        ids[:, : right.shape[1]] = right
        return Chunk((ids + wrong.long()) % self.vocab_size, values, chunk.passes)

    def accept(self, counts: Sequence[int]) -> None:
        self.inner.accept(counts)

    def max_draft_length(self, num_tokens: int) -> int:
        return self.inner.max_draft_length(num_tokens)

    def _answer(self, token_ids: torch.Tensor) -> tuple[int, int, torch.Tensor]:
        """(index, prompt length, text) of the answer that these tokens begin; any answer while costs are measured."""
        for index, (prompt_length, answer) in enumerate(self.drafter.answers):
            if torch.equal(answer[:, :prompt_length].to(token_ids.device), token_ids[:, :prompt_length]):
                return index, prompt_length, answer
        return 0, token_ids.shape[1], self.drafter.answers[0][1]
