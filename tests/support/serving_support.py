"""A caller that does to a proposer what vLLM does, with texts that are known beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from conftest import plain, prompt
from transformers import PreTrainedModel

MAX_LEN = 256


class VocabParallelEmbedding(torch.nn.Module):
    """vLLM's layers have these names, and rows of padding after the vocabulary."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        padding = weight.new_full((64 - weight.shape[0] % 64, weight.shape[1]), float("nan"))
        self.weight = torch.nn.Parameter(torch.cat([weight.detach(), padding]), requires_grad=False)


class ParallelLMHead(VocabParallelEmbedding):
    pass


def served(model: PreTrainedModel) -> torch.nn.Module:
    """The parts of the model, as vLLM holds it, that a proposer looks at."""
    embedding = VocabParallelEmbedding(model.get_input_embeddings().weight)
    head = model.get_output_embeddings()
    is_tied = head.weight is model.get_input_embeddings().weight
    return torch.nn.ModuleList([embedding] if is_tied else [embedding, ParallelLMHead(head.weight)])


def vllm_config(model: PreTrainedModel, drafter: str | None, num_tokens: int = 12, **options: Any) -> Any:
    """What a proposer reads of a `VllmConfig`."""
    given = options if drafter is None else {"drafter": drafter, **options}
    return SimpleNamespace(
        model_config=SimpleNamespace(hf_config=model.config, max_model_len=MAX_LEN, dtype=torch.float32),
        speculative_config=SimpleNamespace(num_speculative_tokens=num_tokens, revision=None),
        parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
        additional_config={"hf_failfast": given},
    )


@dataclass
class Request:
    """A request: its whole text as the target alone writes it, how far it is, and its last draft."""

    text: list[int]
    num_prompt: int
    length: int  # tokens so far
    draft: list[int]

    @property
    def is_done(self) -> bool:
        return self.length >= len(self.text)


class Engine:
    """Steps of a server: each verifies the drafts of its rows against the known texts, then asks for new ones.

    rounds: of each step, the rows' texts and their drafts.
    """

    def __init__(self, proposer: Any, model: PreTrainedModel, num_new: int = 60) -> None:
        self.proposer = proposer
        self.model = model
        self.num_new = num_new
        self.rows: list[Request] = []
        self.reading: set[int] = set()  # ids of requests whose prompt is not read yet
        self.rounds: list[tuple[list[list[int]], list[list[int]]]] = []
        self.num_accepted = 0

    def add(self, length: int, seed: int = 0, is_reading: bool = False, start: Sequence[int] = ()) -> Request:
        """A new request, whose prompt is `start` and then random ids."""
        ids = torch.cat([torch.tensor([list(start)], dtype=torch.long), prompt(length, seed)], dim=1)
        text = plain(self.model, ids, max_new_tokens=self.num_new)[0].tolist()
        request = Request(text, ids.shape[1], ids.shape[1], [])
        self.rows.append(request)
        if is_reading:
            self.reading.add(id(request))
        return request

    def step(self) -> None:
        """One step of the engine over all rows."""
        sampled = [self._verify(request) for request in self.rows]
        ids = np.full((len(self.rows) + 2, MAX_LEN), -1, dtype=np.int32)
        for row, request in enumerate(self.rows):
            ids[row, : request.length] = request.text[: request.length]
        counts = np.array([request.length for request in self.rows] + [0, 0], dtype=np.int32)
        drafts = self.proposer.propose(sampled, counts, ids, slot_mappings=None)
        assert len(drafts) == len(self.rows)
        for request, tokens, draft in zip(self.rows, sampled, drafts, strict=True):
            assert tokens or not draft, "a draft for a row that has drawn no token"
            request.draft = draft
        self.rounds.append(([request.text[: request.length] for request in self.rows], drafts))
        self.rows = [request for request in self.rows if not request.is_done]

    def _verify(self, request: Request) -> list[int]:
        """The tokens of a row's step: the draft's right ones and the target's own next."""
        if id(request) in self.reading:
            self.reading.discard(id(request))
            return []
        rest = request.text[request.length :]
        same = [a == b for a, b in zip(request.draft, rest, strict=False)]
        accepted = min(same.index(False) if False in same else len(same), len(rest) - 1)
        self.num_accepted += accepted
        request.length += accepted + 1
        return rest[: accepted + 1]

    def finish(self, limit: int = 400) -> None:
        """Steps until no request is left."""
        for _ in range(limit):
            if not self.rows:
                return
            self.step()
        raise AssertionError("the requests do not end")
