"""A stack of drafters, from the cheapest to the best: each level accepts or repairs what the one before proposes.

HSD (arXiv 2510.19705) lets every drafter of a stack verify the draft of the one before it, so that the target is asked
about few tokens that would not stay; Double (arXiv 2601.05524) and DuoDecoding (arXiv 2503.00784) let a text's own
repetitions draft for the drafter. Here the levels of a round are chosen by what rounds of each kind made and took.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from time import perf_counter
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import torch
from torch import nn

from ..config import FailFastConfig
from ..drafters import DiffusionDrafter, Draft, DraftRequest, DraftSession, PerRow, Wrapper
from ..engine.ragged import RaggedIds
from ..policies.base import Decision, LengthPolicy
from ..policies.bound import Pace
from ..policies.confidence import ConfidenceThreshold, FixedLength
from ..policies.goodput import Mean
from .lookup import SHORTEST_MATCH
from .suffixes import Match, SuffixAutomaton
from .suggestion import MatchTrust

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOOKUP = "lookup"
MOST_LEVELS = 3
LONG_MATCH = 8  # tokens; matches from here on are a kind of their own

# What a plan is taken to make before it is tried: tokens a round, as if seen in this number of rounds. It is hopeful,
# so that one bad round does not end a plan; and a plan is tried again after this number of rounds without it.
PRIOR_TOKENS, PRIOR_ROUNDS, RETRY = 3.0, 2.0, 24

Plan = tuple[int, ...]  # the levels that a round asks, ascending


class Hierarchy(DiffusionDrafter):
    """Several drafters as one: `assistant_model=Hierarchy(["lookup", drafter])`.

    levels: one to three, the cheapest first: `"lookup"`, which may only be the first (tokens that followed where the
        end of the text stood before), and drafters of `load_drafter` with the target's tokens.

    Each round asks some of the levels in turn. A drafter that can tell in one pass what it would have written after
    each proposed token (causal attention on known tokens, shift 1) keeps those that it agrees with, and adds its own
    next token after a disagreement, or its own draft after all of them. Another one drafts, and what was proposed
    stays where it goes on after its whole draft. The draft of the last level is what the target verifies. Which levels
    a round asks is chosen by the tokens a second of earlier rounds.

    Drafts are never samples: to `verifier="rejection"` they are certain proposals. `chunk_length` and the other
    numbers are those of the last drafter unless the call names them, and `max_draft_length` bounds the tokens of every
    level. Each sequence of a batch has levels of its own.

    Raises ValueError on levels that it cannot have, and with the call on trees, on other named length policies, and on
    `assistant_tokenizer`. In conversations: `Conversation(Hierarchy([...]))`.
    """

    drafts_by_chunks = False

    def __init__(self, levels: Sequence[Literal["lookup"] | DiffusionDrafter]) -> None:
        self.levels = _checked(levels)
        self.config = self.drafters[-1].config if self.drafters else FailFastConfig()
        if self.drafters:
            self.runners = self.drafters[-1].runners

    @property
    def drafters(self) -> list[DiffusionDrafter]:
        """The levels that are models."""
        return [level for level in self.levels if isinstance(level, DiffusionDrafter)]

    def start(self, request: DraftRequest) -> DraftSession:
        self.check_target(request.target)
        plans = Plans(len(self.levels), has_lookup=self.levels[0] == LOOKUP)
        request = replace(request, warp=None, num_alternatives=0)
        return PerRow.of(request, lambda one: self._start(one, plans))

    def _start(self, request: DraftRequest, plans: Plans) -> HierarchySession:
        levels = [
            DrafterLevel(level.start(request), ConfidenceThreshold(level.config))
            if isinstance(level, DiffusionDrafter)
            else None
            for level in self.levels
        ]
        return HierarchySession(levels, plans, request.eos_token_ids)

    def check_target(self, target: PreTrainedModel) -> None:
        for drafter in self.drafters:
            if drafter.made_for is not None:
                drafter.made_for.check(target)
            drafter.check_target(target)

    def modules(self) -> Iterator[nn.Module]:
        for drafter in self.drafters:
            yield from drafter.modules()


def _checked(levels: object) -> tuple[str | DiffusionDrafter, ...]:
    if not isinstance(levels, (list, tuple)) or not 1 <= len(levels) <= MOST_LEVELS:
        found = f"of {len(levels)}" if isinstance(levels, (list, tuple)) else f"a {type(levels).__name__}"
        raise ValueError(f"`levels` must be a list of 1 to {MOST_LEVELS} levels, but is {found}.")
    for place, level in enumerate(levels):
        if isinstance(level, (Wrapper, Hierarchy)):
            raise ValueError(
                f"`levels[{place}]` must be a drafter of `load_drafter`, but is a {type(level).__name__}: wrap the "
                "Hierarchy instead, where that is possible."
            )
        if not isinstance(level, DiffusionDrafter) and level != LOOKUP:
            raise ValueError(f"`levels[{place}]` must be 'lookup' or a drafter of `load_drafter`, but is {level!r}.")
        if level == LOOKUP and place:
            raise ValueError(f"`levels[{place}]`='lookup' must come first: it is the cheapest level.")
    return tuple(levels)


class Plans:
    """Chooses the levels that a round asks. Of all rounds of a generation, those of a batch's other sequences too, it
    knows how long rounds of each plan take, and how many tokens they make where the text matches as it does now.

    A text without a match has no use for a lookup: then the plan of the lookup alone is a plain round.
    """

    def __init__(self, num_levels: int, has_lookup: bool) -> None:
        levels = range(num_levels)
        self._all: list[Plan] = [plan for count in range(1, num_levels + 1) for plan in combinations(levels, count)]
        self.has_lookup = has_lookup
        self._seconds = {plan: Pace() for plan in self._all}
        self._tokens: dict[tuple[Plan, int], Mean] = {}
        self._rounds = [0, 0, 0]  # by kind of match
        self._last: dict[tuple[Plan, int], int] = {}  # the round, of that kind, in which a plan was used last

    def choose(self, match: int) -> Plan:
        """The plan for a text whose end of `match` tokens stood in it before: of those not used for long the one
        unused for longest, else the one that made the most tokens a second."""
        kind = self._kind(match)
        plans = [plan for plan in self._all if kind or not self.has_lookup or 0 not in plan or plan == (0,)]
        now = self._rounds[kind] = self._rounds[kind] + 1
        since = {plan: now - self._last.get((plan, kind), -RETRY) for plan in plans}
        oldest = max(plans, key=lambda plan: since[plan])
        chosen = oldest if since[oldest] > RETRY else max(plans, key=lambda plan: self._rate(plan, kind))
        self._last[chosen, kind] = now
        return chosen

    def made(self, plan: Plan, match: int, tokens: int) -> None:
        """A round of this plan made this number of tokens."""
        self._mean(plan, self._kind(match)).add(tokens)

    def took(self, plan: Plan, seconds: float) -> None:
        """A round of this plan took this long."""
        self._seconds[plan].add(seconds)

    def _rate(self, plan: Plan, kind: int) -> float:
        seconds = self._seconds[plan].mean
        return self._mean(plan, kind).value / seconds if seconds else float("inf")

    def _mean(self, plan: Plan, kind: int) -> Mean:
        is_plain = self.has_lookup and not kind and plan == (0,)
        prior = 1.0 if is_plain else PRIOR_TOKENS
        return self._tokens.setdefault((plan, kind), Mean(prior, PRIOR_ROUNDS, memory=0.95))

    def _kind(self, match: int) -> int:
        return bisect((SHORTEST_MATCH, LONG_MATCH), match)


class DrafterLevel(NamedTuple):
    """A drafter in a hierarchy. rule: how long it drafts for the level after it."""

    session: DraftSession
    rule: LengthPolicy


class Begun(LengthPolicy):
    """A policy that has been asked already whether the round drafts."""

    def __init__(self, policy: LengthPolicy) -> None:
        super().__init__(policy.chunk_length, policy.max_draft_length)
        self.policy = policy

    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        return self.policy.should_extend(confidence)

    def decide(
        self, token_ids: torch.Tensor, confidence: torch.Tensor, eos_token_ids: torch.Tensor | None, can_extend: bool
    ) -> Decision:
        return self.policy.decide(token_ids, confidence, eos_token_ids, can_extend)

    def cut(self, lengths: Sequence[int]) -> list[int]:
        return self.policy.cut(lengths)


NOTHING = FixedLength(1)  # for a level that is not asked: it has no room, and hears of the text only


class Proposed(NamedTuple):
    """What a level, or all up to it, proposes."""

    token_ids: list[int]
    confidence: list[float]
    passes: int = 0
    host_reads: int = 0


class HierarchySession(DraftSession):
    """The levels of one sequence. Every drafter hears of every round, whether it is asked or not.

    levels: None is the lookup.
    """

    def __init__(
        self, levels: Sequence[DrafterLevel | None], plans: Plans, eos_token_ids: torch.Tensor | None
    ) -> None:
        self.levels = levels
        self.sessions = [level.session for level in levels if level is not None]
        self.plans = plans
        self.text = SuffixAutomaton()
        self.trust = MatchTrust()
        self.match = Match(0, [])
        self.plan: Plan | None = None  # None: the round does not draft
        self.drafted: list[int] = []  # of the round
        self.own: list[list[int]] = []  # by session: its own draft of the round
        self._ends = set() if eos_token_ids is None else set(eos_token_ids.tolist())
        self._since: float | None = None  # when the round began; None: it reads a prompt
        self._is_first = True
        reading = [session for session in self.sessions if session.target_layers]
        if len(reading) > 1:
            raise ValueError("Only one level of a Hierarchy can read the target's hidden states.")
        self.reader = reading[0] if reading else None
        self.target_layers = self.reader.target_layers if self.reader is not None else ()

    def draft(self, text: RaggedIds, policy: LengthPolicy, room: Sequence[int]) -> Draft:
        (length,), (space,) = text.lengths, room
        self._begin_round()
        read = len(self.text.text)
        self.text.extend(text.ids[0, read:length].tolist())  # host sync: the new tokens
        is_drafting = policy.start_draft(1, length, space)
        longest = min(policy.max_draft_length, space)
        self.match = self._look_up(longest)
        self.plan = self.plans.choose(self.match.length) if is_drafting else None
        found = self._ask(text, Begun(policy), longest)
        self.drafted = found.token_ids
        device = text.ids.device
        return Draft(
            torch.tensor([found.token_ids], dtype=torch.long, device=device),
            torch.tensor([found.confidence], dtype=torch.float32, device=device),
            found.passes,
            found.host_reads + 1,
        )

    def accept(self, counts: Sequence[int]) -> None:
        (count,) = counts
        accepted = self.drafted[:count]
        for session, own in zip(self.sessions, self.own, strict=True):
            common = _common(own, accepted)
            session.accept([common])
            if count > common:
                session.overtaken([count - common])
        if self.plan is not None:
            self.plans.made(self.plan, self.match.length, count + 1)
            if 0 in self.plan and self.match.token_ids[:1] == self.drafted[:1] != []:
                self.trust.observe(self.match.length, count > 0)

    def overtaken(self, counts: Sequence[int]) -> None:
        for session in self.sessions:
            session.overtaken(counts)

    def observe(self, states: Sequence[torch.Tensor]) -> None:
        if self.reader is not None:
            self.reader.observe(states)

    def inherit(self, previous: Self, num_tokens: int, rows: tuple[int, int] = (0, 0)) -> int:
        pairs = zip(self.sessions, previous.sessions, strict=True)
        return min((mine.inherit(theirs, num_tokens, rows) for mine, theirs in pairs), default=0)

    def _begin_round(self) -> None:
        """Tells how long the round before took, unless it read the prompt."""
        now = perf_counter()
        if self._since is not None and self.plan is not None:
            self.plans.took(self.plan, now - self._since)
        self._since, self._is_first = None if self._is_first else now, False

    def _look_up(self, longest: int) -> Match:
        if not self.plans.has_lookup or longest < 1:
            return Match(0, [])
        match = self.text.following([], longest)
        if match.length < SHORTEST_MATCH:
            return Match(0, [])
        ends = (place for place, token in enumerate(match.token_ids, start=1) if token in self._ends)
        return Match(match.length, match.token_ids[: next(ends, longest)])

    def _ask(self, text: RaggedIds, policy: LengthPolicy, longest: int) -> Proposed:
        """Asks the plan's levels in turn; the others hear of the text."""
        plan = self.plan or ()
        found, self.own = Proposed([], []), []
        for place, level in enumerate(self.levels):
            if level is None:
                if place in plan:
                    trust = self.trust.probability(self.match.length)
                    kept = policy.cut([len(self.match.token_ids)])[0] if plan == (place,) else longest
                    ids = self.match.token_ids[:kept]
                    found = Proposed(ids, [trust] * len(ids))
            elif place in plan:
                found = self._drafted(level, text, found, policy if place == plan[-1] else level.rule, longest)
            else:
                level.session.draft(text, NOTHING, [0])
                self.own.append([])
        return found

    def _drafted(
        self, level: DrafterLevel, text: RaggedIds, before: Proposed, policy: LengthPolicy, longest: int
    ) -> Proposed:
        """What a drafter makes of a proposal."""
        if level.session.judges and before.token_ids[: longest - 1]:
            level.session.guess(before.token_ids[: longest - 1])
        draft = level.session.draft(text, policy, [longest])
        (ids,), (confidence,) = draft.token_ids.tolist(), draft.confidence.tolist()  # host sync: the draft
        self.own.append(ids)
        if not level.session.judges and before.token_ids[: len(ids)] == ids:
            ids, confidence = before.token_ids, [*confidence, *before.confidence[len(ids) :]]
        return Proposed(ids, confidence, before.passes + draft.passes, before.host_reads + draft.host_reads + 1)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
