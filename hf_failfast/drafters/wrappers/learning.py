"""A drafter that learns from the text it drafts."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from ...engine.ragged import RaggedIds
from ...engine.runner import TopLogits
from ...policies.base import LengthPolicy
from ..adapter import Adapter, head_size
from ..base import DiffusionDrafter, Draft, DraftRequest, DraftSession
from ..learning.learner import Learner, LearningStats, Recipe
from ..learning.pupils import Pupil
from ..learning.stored import save_adapter, save_merged
from ..learning.texts import Recorder, Texts, record
from .base import Wrapper

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LearningShare = float | Literal["between requests"]

# How many of the target's most likely tokens are kept at each position, and how many pieces of text.
TOP = 16
PIECES = 64
# A step costs at most this many times the forward of its tokens: until the first step this bounds its cost.
FORWARDS = 3.0
# Steps per piece of new text between requests.
STEPS_BETWEEN = 2


class Learning(Wrapper):
    """A drafter that learns from the text it drafts: `assistant_model=Learning(drafter)` in every call.

    Each verification leaves the target's own distribution at every position of the text. Learning keeps the most
    likely tokens of the newest text, and takes steps on a small adapter of the drafter (see `adapter`) that bring its
    drafts nearer to them (Test-Time Speculation, arXiv 2605.09329). The target never changes, and the output is the
    same as with the drafter itself: what is learned is a function of text that is already final.

    learning_share: steps are taken between rounds, for at most this share (0 to 1) of the time that decoding takes;
        `"between requests"`: none during a request, but before the next one, and whenever `learn` is called.
    rank: of the low-rank updates. learning_rate: of the steps.

    The adapter is part of the drafter: calls with the drafter itself draft with what was learned, and `reset` takes it
    back. Requests in several threads share one learner; one of them at a time takes a step.

    Raises ValueError on drafters that cannot learn, on another target than the first call's, and on
    `assistant_tokenizer`. In conversations: `Conversation(Learning(drafter))`.

    A copy, also in another process, has what was learned, and no text.
    """

    def __init__(
        self,
        drafter: DiffusionDrafter,
        *,
        learning_share: LearningShare = 0.1,
        rank: int = 8,
        learning_rate: float = Recipe().learning_rate,
    ) -> None:
        if isinstance(drafter, Wrapper):
            raise ValueError(
                f"`drafter` must be a drafter of `load_drafter`, but is {type(drafter).__name__}"
                + (": use Conversation(Learning(drafter))." if hasattr(drafter, "held") else ".")
            )
        if not isinstance(drafter, DiffusionDrafter):
            raise ValueError(f"`drafter` must be a drafter of `load_drafter`, but is {type(drafter).__name__}.")
        if not _is_share(learning_share):
            raise ValueError(
                f"`learning_share` must be a number > 0 and <= 1, or 'between requests', but is {learning_share!r}."
            )
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"`rank` must be an integer >= 1, but is {rank!r}.")
        if not isinstance(learning_rate, (int, float)) or not 0 < learning_rate < 1:
            raise ValueError(f"`learning_rate` must be a number > 0 and < 1, but is {learning_rate!r}.")
        super().__init__(drafter)
        self.learning_share = learning_share
        self.rank = rank
        self.learning_rate = learning_rate
        self._pupil = Pupil.of(drafter)
        self._begin()

    def _begin(self) -> None:
        self._target: weakref.ref[PreTrainedModel] | None = None
        self._learner: Learner | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_target", "_learner", "_lock", "_pupil")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._pupil = Pupil.of(self.drafter)
        self._begin()

    @property
    def statistics(self) -> LearningStats:
        """What learning did so far."""
        return LearningStats() if self._learner is None else self._learner.stats

    @property
    def learned_steps(self) -> int:
        """Steps taken so far."""
        return self.statistics.learned_steps

    def learn(self, max_steps: int | None = None) -> int:
        """Takes steps now, by default some per piece of text that is new, and returns how many; for an idle server."""
        learner = self._learner
        if learner is None:
            return 0
        return learner.study(max_steps=STEPS_BETWEEN * learner.num_new() if max_steps is None else max_steps)

    def reset(self) -> None:
        """Forgets what was learned. The kept text stays, to learn from."""
        if self._learner is not None:
            self._learner.reset()

    def save(self, path: str | Path, merged: bool = False) -> None:
        """Writes what was learned into the folder `path`, which `load_drafter` then loads as a drafter.

        By default a small file that names the drafter's checkpoint; in the checkpoint's own folder it goes with it.
        merged: a whole checkpoint, with the updates added to its weights. Raises ValueError if nothing was learned
            yet, or if the checkpoint cannot be rewritten.
        """
        if self._learner is None or self.source is None:
            raise ValueError("There is nothing to save: no request has used this drafter, or it has no checkpoint.")
        save = save_merged if merged else save_adapter
        save(self._learner.adapter, self.source, Path(path))

    def start(self, request: DraftRequest) -> LearningSession:
        learner = self._learner_for(request.target)
        steps = self.learn() if self.learning_share == "between requests" else 0
        session = LearningSession(self.drafter.start(request), self, learner, request.num_rows)
        session.learned_steps = steps
        return session

    def _learner_for(self, target: PreTrainedModel) -> Learner:
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if self._target is not None and self._target() is not target:
                raise ValueError("`assistant_model` is a Learning of another target: make one for each of them.")
            if self._learner is None:
                _, head = self._pupil.attach(target)
                adapter = Adapter(self._pupil.body, head_size(head), self.rank)
                width = len(self._pupil.source_layers) * self._pupil.body.config.hidden_size
                texts = Texts(PIECES, TOP, self._pupil.block, width)
                recipe = Recipe(learning_rate=self.learning_rate)
                self._learner = Learner(self._pupil, adapter, target, texts, recipe)
                self._target = weakref.ref(target)
            return self._learner


class LearningSession(DraftSession):
    """Records the text of one generation, and takes steps between its rounds."""

    top_logits = TOP

    def __init__(self, session: DraftSession, owner: Learning, learner: Learner, num_rows: int) -> None:
        self.session = session
        self.target_layers = session.target_layers
        self.learner = learner
        self.share = owner.learning_share
        device = learner.runner.model.device
        self.recorders = [Recorder(learner.texts, device) for _ in range(num_rows)]
        self._accepted = 0
        self._draft_seconds = 0.0
        self._since = perf_counter()

    def draft(self, text: RaggedIds, policy: LengthPolicy, room: Sequence[int]) -> Draft:
        started = perf_counter()
        draft = self.session.draft(text, policy, room)
        if draft.passes:
            self._draft_seconds = (perf_counter() - started) / draft.passes
        return draft

    def accept(self, counts: Sequence[int]) -> None:
        self.session.accept(counts)
        self._accepted = sum(counts)

    def overtaken(self, counts: Sequence[int]) -> None:
        self.session.overtaken(counts)

    def keep(self, rows: Sequence[int]) -> None:
        self.session.keep(rows)
        self.recorders = [self.recorders[row] for row in rows]

    def observe(self, states: Sequence[torch.Tensor]) -> None:
        self.session.observe(states)
        if self.learner.stats.ended is None:
            for recorder, own in zip(self.recorders, states, strict=True):
                recorder.observe(own)

    def inherit(self, previous: Self, num_tokens: int, rows: tuple[int, int] = (0, 0)) -> int:
        mine, at = self.session.row(rows[0])
        theirs, there = previous.session.row(rows[1])
        inherited = mine.inherit(theirs, num_tokens, (at, there))
        if self.target_layers:
            self.recorders[rows[0]].inherit(num_tokens)
        return inherited

    def learn(self, text: RaggedIds, gained: Sequence[int], top: TopLogits) -> None:
        """Records the round, and takes a step if the budget has one."""
        stats = self.learner.stats
        stats.acceptance.add(sum(count > 0 for count in gained), self._accepted, sum(gained))
        if stats.ended is None:
            try:
                record(self.recorders, text, gained, top)
            except Exception as error:  # text that cannot be recorded is no reason to stop drafting
                self.learner.end(f"{type(error).__name__}: {error}")
        now = perf_counter()
        stats.decoding_seconds += now - self._since
        if isinstance(self.share, (int, float)) and self._step_seconds() <= self._left(self.share):
            self.learned_steps += self.learner.study()
        self._since = perf_counter()

    def _left(self, share: float) -> float:
        """Seconds of the budget that are not spent."""
        stats = self.learner.stats
        return share * stats.decoding_seconds - stats.learning_seconds

    def _step_seconds(self) -> float:
        """What a step costs: as the last one, or at most so much before the first."""
        return self.learner.step_seconds or FORWARDS * self.learner.forwards_of_a_draft * self._draft_seconds


def _is_share(value: object) -> bool:
    if isinstance(value, str):
        return value == "between requests"
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 < value <= 1
