"""A generation round by round: what was drafted, how sure the drafter was, what the target made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile, zip_longest
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import torch

from ..decoding.stats import SpecDecodingStats
from ..drafters import DiffusionDrafter, Draft, DraftRequest, DraftSession, RaggedIds, Wrapper
from ..engine.runner import TopLogits
from ..policies.base import LengthPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TracedRound:
    """One round. A draft token has been judged if it was accepted or is the first one that was not.

    draft_ids, confidence: of the d tokens that the drafter drafted.
    accepted: how many of the emitted tokens had been proposed: by the drafter, or by a strategy beside it (a tree's
        branches, the text itself).
    emitted_ids: the accepted tokens and, unless the text ended inside the proposal, the target's own bonus token.
    probability: the target's of each emitted token, from its raw logits in fp32.
    draft_seconds, verify_seconds: wall clock; verifying includes accepting.
    """

    draft_ids: list[int]
    confidence: list[float]
    accepted: int
    emitted_ids: list[int]
    probability: list[float]
    passes: int
    draft_seconds: float
    verify_seconds: float

    @property
    def has_bonus(self) -> bool:
        return len(self.emitted_ids) > self.accepted

    @property
    def accepted_own(self) -> int:
        """How many of the accepted tokens are the drafter's draft, from its first on."""
        pairs = zip(self.draft_ids, self.emitted_ids[: self.accepted], strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))

    @property
    def judged(self) -> list[tuple[float, bool]]:
        """(confidence, whether it was accepted) of every judged draft token. After a rejection the target answered
        another prefix than the drafter's, and after the end of the text nothing: no verdict on those."""
        own = self.accepted_own
        instead = self.emitted_ids[own : own + 1]
        first_rejected = bool(instead) and self.draft_ids[own : own + 1] not in ([], instead)
        verdicts = [True] * own + [False] * first_rejected
        return list(zip(self.confidence, verdicts, strict=False))


@dataclass(frozen=True)
class Trace:
    """A prompt's ids, the rounds that answered it, and the generation's own statistics."""

    prompt_ids: list[int]
    rounds: list[TracedRound]
    stats: SpecDecodingStats

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        rounds = [asdict(traced) for traced in self.rounds]
        return {"prompt_ids": self.prompt_ids, "rounds": rounds, "stats": self.stats.as_dict()}


def trace(target: PreTrainedModel, input_ids: torch.Tensor, drafter: DiffusionDrafter, **arguments: Any) -> Trace:
    """Answers one prompt (1, n) with `target.generate` through this package, and remembers every round.

    arguments: of `generate`, FailFast options among them. Raises ValueError on `overlap`: of drafts that are made
        ahead some are never verified.
    """
    config = arguments.get("failfast_config") or drafter.config
    if arguments.get("overlap", config.overlap):
        raise ValueError("`overlap`=True cannot be traced, only `overlap`=False: some of its drafts are in no round.")
    recorder = RecordingDrafter(drafter)
    output = target.generate(
        input_ids,
        assistant_model=recorder,
        custom_generate="hf_failfast",
        return_dict_in_generate=True,
        output_logits=True,
        **arguments,
    )
    stats: SpecDecodingStats = output["speculation"]
    new_ids = output.sequences[0, input_ids.shape[1] :]
    log_probabilities = torch.stack(output.logits)[:, 0].float().log_softmax(dim=-1)
    probability = log_probabilities.gather(1, new_ids[:, None]).exp()[:, 0].tolist()
    return Trace(input_ids[0].tolist(), _rounds(recorder.sessions[0], stats, new_ids.tolist(), probability), stats)


def _rounds(
    drafts: list[_RecordedDraft], stats: SpecDecodingStats, new_ids: list[int], probability: list[float]
) -> list[TracedRound]:
    rounds, start = [], 0
    for recorded, record in zip_longest(drafts, stats.records):  # a drafter that failed is not asked again
        end = start + record.emitted
        rounds.append(
            TracedRound(
                draft_ids=recorded.draft.token_ids[0].tolist() if recorded else [],
                confidence=recorded.draft.confidence[0].tolist() if recorded else [],
                accepted=record.accepted,
                emitted_ids=new_ids[start:end],
                probability=probability[start:end],
                passes=record.drafter_passes,
                draft_seconds=recorded.drafted_at - recorded.started_at if recorded else 0.0,
                verify_seconds=recorded.accepted_at - recorded.drafted_at if recorded else 0.0,
            )
        )
        start = end
    return rounds


@dataclass
class _RecordedDraft:
    draft: Draft
    started_at: float
    drafted_at: float
    accepted_at: float = 0.0


class RecordingDrafter(Wrapper):
    """Another drafter, whose drafts are kept: decoding itself records no confidences, so that it need not read them.

    sessions: the drafts of every session, by round. The first session is the text's own; a length policy that measures
        what drafting costs starts others.
    """

    def __init__(self, drafter: DiffusionDrafter) -> None:
        super().__init__(drafter)
        self.sessions: list[list[_RecordedDraft]] = []

    def start(self, request: DraftRequest) -> DraftSession:
        self.sessions.append([])
        return _RecordingSession(self.drafter.start(request), self.sessions[-1])


class _RecordingSession(DraftSession):
    def __init__(self, session: DraftSession, drafts: list[_RecordedDraft]) -> None:
        self.session = session
        self.drafts = drafts
        self.target_layers = session.target_layers
        self.top_logits = session.top_logits

    def draft(self, text: RaggedIds, policy: LengthPolicy, room: Sequence[int]) -> Draft:
        started = perf_counter()
        draft = self.session.draft(text, policy, room)
        self.drafts.append(_RecordedDraft(draft, started, perf_counter()))
        return draft

    def accept(self, counts: Sequence[int]) -> None:
        self.drafts[-1].accepted_at = perf_counter()
        self.session.accept(counts)

    def overtaken(self, counts: Sequence[int]) -> None:
        self.session.overtaken(counts)

    def keep(self, rows: Sequence[int]) -> None:
        self.session.keep(rows)

    def observe(self, states: Sequence[torch.Tensor]) -> None:
        self.session.observe(states)

    def learn(self, text: RaggedIds, gained: Sequence[int], top: TopLogits) -> None:
        self.session.learn(text, gained, top)
        self.learned_steps = self.session.learned_steps

    def inherit(self, previous: Self, num_tokens: int, rows: tuple[int, int] = (0, 0)) -> int:
        return self.session.inherit(previous.session, num_tokens, rows)
