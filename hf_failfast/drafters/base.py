"""The contract of a drafter: the request, the draft, and how the drafter learns what was accepted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.nn.functional import pad

from ..config import FailFastConfig
from ..engine.ragged import RaggedIds
from ..engine.runner import TopLogits
from ..engine.runner_pool import RunnerPool
from ..engine.slot_cache import SharedSlots
from ..policies.base import LengthPolicy
from .checkpoints.target_fit import MadeFor
from .denoising import Alternatives, Warp

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .checkpoints.reading import Checkpoint


@dataclass(frozen=True)
class Draft:
    """What the drafter proposes in a round; k, the length of the longest sequence's draft, may be 0."""

    token_ids: torch.Tensor  # (B, k)
    confidence: torch.Tensor  # (B, k), fp32
    passes: int  # drafter forwards
    host_reads: int
    probs: torch.Tensor | None = None  # (B, k, V), fp32: what the tokens were drawn from
    lengths: list[int] = field(default_factory=list)  # of each draft, default k; ids after it are arbitrary
    alternatives: Alternatives | None = None  # to these tokens, on the drafter's device

    def __post_init__(self) -> None:
        if not self.lengths:
            self.lengths.extend([len(self)] * self.token_ids.shape[0])

    def __len__(self) -> int:
        return self.token_ids.shape[1]

    def to(self, device: torch.device) -> Draft:
        """The same draft on the device that verifies it."""
        if self.token_ids.device == device:
            return self
        probs = None if self.probs is None else self.probs.to(device)
        return replace(self, token_ids=self.token_ids.to(device), confidence=self.confidence.to(device), probs=probs)

    @classmethod
    def empty(cls, text: RaggedIds) -> Draft:
        """No token for any of these sequences."""
        none = text.ids[:, :0]
        return cls(none, none.float(), 0, 0)


@dataclass(frozen=True)
class DraftRequest:
    """What a drafter is told when it starts for a generation.

    target: the model that verifies.
    capacity: tokens that a sequence may have at most, drafted ones included.
    num_rows: sequences of the batch.
    eos_token_ids: ids (n,) after which a draft need not go on; None: there are none.
    warp: None: drafts are the drafter's most likely tokens. Otherwise a session that can sample draws its tokens from
        the softmax of its warped logits, and returns the distributions in the draft's `probs`.
    slots: the target's own in this generation. A session that drafts in them uses those after the text, and leaves
        their lengths as they were. None: the loop has none, or cannot let a draft write there.
    """

    target: PreTrainedModel
    capacity: int
    num_rows: int = 1
    eos_token_ids: torch.Tensor | None = None
    warp: Warp | None = None
    num_alternatives: int = 0
    slots: SharedSlots | None = None

    def eos_on(self, device: torch.device) -> torch.Tensor | None:
        """The `eos_token_ids` on the drafter's device."""
        return None if self.eos_token_ids is None else self.eos_token_ids.to(device)


class DraftSession(ABC):
    """A drafter's state during one generation: what it remembers of the sequences so far.

    Between two drafts each sequence grows by some prefix of its last draft and one more token, which the owner reports
    with `accept`; where the target has verified other tokens beside the draft, it may grow by more, which the owner
    reports with `overtaken`. A session that drafts from the target's hidden states names the layers it needs in
    `target_layers` (indices into transformers' `hidden_states`: 0 is the embedding). Before each draft `observe` hands
    it the new states, up to those of the token before the last accepted one.

    A session that learns says in `top_logits` how many of the target's most likely tokens it wants to see at each
    position; then `learn` hands it every round's, after `accept` and `observe`. `learned_steps` counts its steps.

    A session of one sequence that `judges` can tell in one pass what it would write after each of some guessed tokens.

    takes_back: whether `accept` takes counts below 0, too: then tokens of the text that the last draft follows turned
        out to be others. Only such a session may draft before its text is known (`overlap`); `overlap_hits` counts the
        rounds that got such a draft.
    """

    target_layers: tuple[int, ...] = ()
    judges: bool = False
    top_logits: int = 0
    learned_steps: int = 0
    takes_back: bool = False
    overlap_hits: int = 0

    @abstractmethod
    def draft(self, text: RaggedIds, policy: LengthPolicy, room: Sequence[int]) -> Draft:
        """Drafts up to `room[b]` tokens after the accepted ones of sequence b; none where that is < 1."""

    def guess(self, token_ids: Sequence[int]) -> None:
        """Tokens that may follow the text. The next draft begins with those that the drafter would have written, too;
        after them come its own next token and, if it agrees with all, its own draft. Called only if it `judges`."""
        assert self.judges, f"{type(self).__name__} cannot tell what it would have written"

    @abstractmethod
    def accept(self, counts: Sequence[int]) -> None:
        """The first `counts[b]` tokens of sequence b's last draft became part of it, the others did not."""

    def overtaken(self, counts: Sequence[int]) -> None:  # noqa: B027
        """Sequence b got `counts[b]` further tokens after the accepted ones, which are not of its draft."""

    def keep(self, rows: Sequence[int]) -> None:
        """Forgets all other sequences, which are complete. A session of one sequence need not define it."""
        assert list(rows) == [0], f"{type(self).__name__} drafts for one sequence"

    def observe(self, states: Sequence[torch.Tensor]) -> None:
        """The target's hidden states of the next tokens not yet handed over, per sequence (1, m, width of all
        `target_layers`). Called only if the session names `target_layers`."""
        assert not self.target_layers, f"{type(self).__name__} asks for hidden states and does not take them"

    def learn(self, text: RaggedIds, gained: Sequence[int], top: TopLogits) -> None:
        """The last `gained[b]` tokens of each sequence are new, and final. The first `gained[b]` entries of `top` are
        what the target found likely in their places. Called only if the session asks for `top_logits`."""
        assert not self.top_logits, f"{type(self).__name__} asks for the target's logits and does not take them"

    def close(self) -> None:  # noqa: B027
        """The generation is over, however it ended; nothing of the session goes on."""

    def row(self, row: int) -> tuple[DraftSession, int]:
        """The session that remembers a sequence of this one, and its row there."""
        return self, row

    def inherit(self, previous: Self, num_tokens: int, rows: tuple[int, int] = (0, 0)) -> int:
        """Takes over what another session of this drafter remembers of the first `num_tokens` tokens of a sequence
        (not the last token), and returns how many tokens that are. Called at most once for each sequence, before the
        first draft. By default 0: then the drafter reads the whole text.

        rows: the sequence's row in this session, and in the other one."""
        return 0


class PerRow(DraftSession):
    """One session per sequence, called one after the other: drafts for batches with a drafter for one sequence."""

    def __init__(self, sessions: list[DraftSession]) -> None:
        self.sessions = sessions
        self.target_layers = sessions[0].target_layers
        self.top_logits = sessions[0].top_logits
        self.takes_back = all(session.takes_back for session in sessions)

    @classmethod
    def of(cls, request: DraftRequest, start: Callable[[DraftRequest], DraftSession]) -> DraftSession:
        """A session for any number of sequences, from a function that starts a session for one."""
        if request.num_rows == 1:
            return start(request)
        return cls([start(replace(request, num_rows=1)) for _ in range(request.num_rows)])

    def draft(self, text: RaggedIds, policy: LengthPolicy, room: Sequence[int]) -> Draft:
        rows = zip(self.sessions, text.ids, text.lengths, room, strict=True)
        return _stack(
            [session.draft(RaggedIds.full(ids[None, :n]), policy, [limit]) for session, ids, n, limit in rows]
        )

    def accept(self, counts: Sequence[int]) -> None:
        for session, count in zip(self.sessions, counts, strict=True):
            session.accept([count])

    def overtaken(self, counts: Sequence[int]) -> None:
        for session, count in zip(self.sessions, counts, strict=True):
            session.overtaken([count])

    def keep(self, rows: Sequence[int]) -> None:
        self.sessions = [self.sessions[row] for row in rows]

    def row(self, row: int) -> tuple[DraftSession, int]:
        return self.sessions[row].row(0)

    def observe(self, states: Sequence[torch.Tensor]) -> None:
        for session, row in zip(self.sessions, states, strict=True):
            session.observe([row])

    def learn(self, text: RaggedIds, gained: Sequence[int], top: TopLogits) -> None:
        for row, (session, length) in enumerate(zip(self.sessions, text.lengths, strict=True)):
            own = TopLogits(*(part[row : row + 1] for part in top))
            session.learn(RaggedIds.full(text.ids[row : row + 1, :length]), [gained[row]], own)
        self.learned_steps = sum(session.learned_steps for session in self.sessions)


def _stack(drafts: Sequence[Draft]) -> Draft:
    """The drafts of single sequences as one, on the first one's device."""
    longest, device = max(map(len, drafts)), drafts[0].token_ids.device

    def joined(rows: Sequence[torch.Tensor]) -> torch.Tensor:
        longer = (pad(row.to(device), (0, 0) * (row.ndim - 2) + (0, longest - row.shape[1])) for row in rows)
        return torch.cat(list(longer))

    others = [draft.alternatives for draft in drafts if draft.alternatives is not None]
    alternatives = None
    if others:
        # A sequence without a draft has no alternatives.
        empty = others[0].map(lambda values: values[:, :0])
        rows = [draft.alternatives or empty for draft in drafts]
        alternatives = Alternatives(*(joined(values) for values in zip(*rows, strict=True)))
    drawn = next((draft.probs for draft in drafts if draft.probs is not None), None)
    none = None if drawn is None else drawn[:, :0]  # of a sequence without a draft
    return Draft(
        joined([draft.token_ids for draft in drafts]),
        joined([draft.confidence for draft in drafts]),
        sum(draft.passes for draft in drafts),
        sum(draft.host_reads for draft in drafts),
        None if none is None else joined([none if draft.probs is None else draft.probs for draft in drafts]),
        [len(draft) for draft in drafts],
        alternatives,
    )


class DiffusionDrafter(ABC):
    """A loaded diffusion language model that can draft for targets with its vocabulary.

    config: the chunk rule's numbers that suit this drafter; used if the caller gives none.
    made_for: the target its checkpoint names, if it names one.
    drafts_by_chunks: whether its sessions leave all decisions on lengths to the policy.
    own_model: a model with the vocabulary that the drafter drafts in; None if that is the target's, which lends its
        embedding and head.
    window: the most tokens of a text that the drafter sees; 0: all of it.
    source: the checkpoint that it was loaded from; None: it was made in another way.
    has_alternatives: whether its drafts come with the alternatives that a request asks for.
    """

    config: FailFastConfig
    made_for: MadeFor | None = None
    drafts_by_chunks: bool = True
    own_model: Any = None
    window: int = 0
    source: Checkpoint | None = None
    has_alternatives: bool = False

    def __repr__(self) -> str:
        """In words: what it is, for whom, and the chunk rule's numbers."""
        weights = {weight for module in self.modules() for weight in module.parameters()}
        count = sum(weight.numel() for weight in weights)
        facts = [f"{count / 1e6:.1f} M parameters" if count >= 1e5 else f"{count} parameters"] if count else []
        facts += [f"made for {self.made_for.name}"] if self.made_for is not None else []
        if (config := getattr(self, "config", None)) is not None:
            numbers = config.confidence_threshold, config.chunk_length, config.max_draft_length
            facts.append("tau={}, N={}, N_max={}".format(*numbers))
        return f"{type(self).__name__}({', '.join(facts)})"

    @cached_property
    def runners(self) -> RunnerPool:
        """Makes the runners of this drafter's generations, and keeps their CUDA graphs between calls."""
        return RunnerPool()

    @abstractmethod
    def start(self, request: DraftRequest) -> DraftSession:
        """A session for one generation. Raises ValueError if the target does not fit. A drafter that drafts for one
        sequence at a time returns `PerRow.of(request, ...)`."""

    def check_target(self, target: PreTrainedModel) -> None:  # noqa: B027
        """Raises ValueError if the target does not fit. Asks for its config and the shapes of its embedding only."""

    def borrowing_from(self, lender: PreTrainedModel) -> DiffusionDrafter:
        """The same drafter with embedding and head of `lender`, the target that it was made for: so it can draft for
        targets of another tokenizer. One with its own stays as it is.

        Raises ValueError if it needs more of a target than these, or if they do not fit.
        """
        if self.own_model is None:
            raise ValueError("The drafter reads the target's hidden states: those of another model tell it nothing.")
        return self

    def modules(self) -> Iterator[nn.Module]:
        """Every module with weights of the drafter's own."""
        return iter(())
