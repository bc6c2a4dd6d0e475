"""Steps on an adapter: what they use, what they may cost, and when what they did is undone."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from dataclasses import dataclass, field, fields
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ...engine.runner import EagerRunner
from ..adapter import Adapter, Weights, reading
from .losses import accepted_lengths, divergence, draft_weights, matches
from .passes import logits, passes
from .pupils import Pupil
from .texts import CONTEXT, LENGTH, Piece, Texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# A piece is used once it has this many tokens more than at its last use.
LEAST_NEW = 16
# A piece is used no more often.
MOST_USES = 4
# The share of new pieces on which the adapter is compared with none, before the step that uses them.
MEASURED_EVERY = 4
# The newest comparisons that decide, and how many there must be.
COMPARED, LEAST_COMPARED = 8, 4
# A step whose loss is this many times the usual one has diverged.
DIVERGED = 10.0


@dataclass(frozen=True)
class Recipe:
    """How a step is made.

    learning_rate: of Adam, on the low-rank updates. bias_rate: on the bias.
    canvases: drafts per step, of one piece of text. passes: where each of them takes a pass of its own.
    decay, first_error: see `losses.draft_weights`.
    clip: the largest norm of a gradient.
    """

    learning_rate: float = 3e-4
    bias_rate: float = 1e-3
    canvases: int = 24
    passes: int = 6
    decay: float = 4.0
    first_error: float = 1.0
    clip: float = 1.0


class Comparison(NamedTuple):
    """Accepted draft tokens of the same canvases of text not yet learned from."""

    canvases: int
    without: float  # the adapter
    with_adapter: float


class Drafted(NamedTuple):
    """What a pass over a piece gives for its n canvases of K tokens."""

    loss: torch.Tensor
    accepted: torch.Tensor  # (n,)


class Acceptance:
    """Accepted draft tokens per round over time, in a bounded number of points."""

    ROUNDS, POINTS = 32, 512

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self._rounds_per_point = self.ROUNDS
        self._rounds = self._accepted = self._tokens = 0
        self._lock = threading.Lock()

    def add(self, rounds: int, accepted: int, tokens: int) -> None:
        """Rounds of one sequence each, the draft tokens accepted in them, and the tokens of their text."""
        with self._lock:
            self._rounds, self._accepted = self._rounds + rounds, self._accepted + accepted
            self._tokens += tokens
            if self._rounds < self._rounds_per_point:
                return
            self.points.append((self._tokens, self._accepted / self._rounds))
            self._rounds = self._accepted = 0
            if len(self.points) == self.POINTS:  # two by two
                pairs = zip(self.points[::2], self.points[1::2], strict=True)
                self.points = [(end, (first + second) / 2) for (_, first), (end, second) in pairs]
                self._rounds_per_point *= 2


@dataclass
class LearningStats:
    """What learning did so far.

    learned_steps: steps, undone ones included. resets: how often the adapter was undone because it did not help.
    learning_seconds, decoding_seconds: of the steps, and of the rounds without them.
    acceptance: over time.
    comparisons: the newest, see `Comparison`.
    ended: why learning ended; None: it goes on.
    """

    learned_steps: int = 0
    resets: int = 0
    learning_seconds: float = 0.0
    decoding_seconds: float = 0.0
    acceptance: Acceptance = field(default_factory=Acceptance)
    comparisons: deque[Comparison] = field(default_factory=lambda: deque(maxlen=COMPARED))
    ended: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON: `acceptance` as [tokens so far, accepted per round] of every 32 or more rounds."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        comparisons = [each._asdict() for each in self.comparisons]
        return values | {"acceptance": [list(point) for point in self.acceptance.points], "comparisons": comparisons}


class Learner:
    """The adapter of one drafter for one target, learned from the texts of any number of requests.

    One thread at a time takes a step; others go on without.
    """

    def __init__(self, pupil: Pupil, adapter: Adapter, target: PreTrainedModel, texts: Texts, recipe: Recipe) -> None:
        model, _ = pupil.attach(target)
        self.pupil, self.adapter, self.texts, self.recipe = pupil, adapter, texts, recipe
        self.runner = EagerRunner(model)
        self.stats = LearningStats()
        self.vocab_size = target.config.get_text_config(decoder=True).vocab_size
        self.vocabulary: torch.Tensor | None = getattr(model, "vocabulary", None)
        self._entries: torch.Tensor | None = None
        self._masters: dict[nn.Module, Weights] | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._rate = 1.0
        self._usual_loss: float | None = None
        self._num_new = 0
        self.step_seconds = 0.0  # of the last step; 0 before the first
        self._busy = threading.Lock()
        self._generator = torch.Generator().manual_seed(0)  # the requests' random numbers stay as they are

    def reset(self) -> None:
        """Forgets what was learned; the texts stay."""
        with self._busy:
            self._reset()

    @property
    def forwards_of_a_draft(self) -> float:
        """The tokens of a step as a multiple of those of a draft."""
        length = self.pupil.canvas_length
        own = 1 if self.pupil.shares_context else self._num_canvases  # passes over the text
        return (own * (CONTEXT + LENGTH) + self._num_canvases * length) / length

    @property
    def _num_canvases(self) -> int:
        return self.recipe.canvases if self.pupil.shares_context else self.recipe.passes

    def num_new(self) -> int:
        """Pieces of text with tokens that no step has used."""
        return sum(map(_is_new, self.texts.snapshot()))

    def study(self, max_steps: int = 1) -> int:
        """Takes up to `max_steps` steps, and returns how many; none while another thread does.

        An error ends learning, with a warning: drafting goes on with what was learned before.
        """
        if self.stats.ended is not None or not self._busy.acquire(blocking=False):
            return 0
        before = self.stats.learned_steps
        try:
            with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
                for _ in range(max_steps):
                    piece = self._next()
                    if piece is None:
                        break
                    started = perf_counter()
                    try:
                        self._step(piece)
                    finally:
                        self.step_seconds = perf_counter() - started
                        self.stats.learning_seconds += self.step_seconds
        except Exception as error:
            self.end(f"{type(error).__name__}: {error}")
        finally:
            self._busy.release()
        return self.stats.learned_steps - before

    def _next(self) -> Piece | None:
        """New text first, the newest of it; then what was used least; None if all was used enough."""
        pieces = [piece for piece in self.texts.snapshot() if piece.count >= LEAST_NEW and piece.uses < MOST_USES]
        new = [piece for piece in pieces if _is_new(piece)]
        if new:
            return new[-1]
        return min(pieces, key=lambda piece: piece.uses, default=None)

    def _step(self, piece: Piece) -> None:
        count = piece.count
        masters = self._learnable()
        anchors = self._anchors(piece, count)
        if not anchors:
            piece.uses = MOST_USES
            return
        is_unseen = piece.uses == 0
        with reading(masters):
            drafted = self._draft(piece, anchors, count)
        if is_unseen:
            self._num_new += 1
            if self._num_new % MEASURED_EVERY == 0 and not self._helps(piece, anchors, count, drafted):
                return
        loss = float(drafted.loss.detach())  # host sync: whether it is a number
        usual = self._usual_loss
        if not math.isfinite(loss) or (usual is not None and loss > DIVERGED * max(usual, 0.1)):
            self._reset()
            raise ArithmeticError(f"a step's loss is {loss:.3g}, after {usual or loss:.3g}; what it learned is undone")
        self._usual_loss = loss if usual is None else 0.9 * usual + 0.1 * loss
        self._descend(drafted.loss)
        self.adapter.publish(self._learnable())
        piece.uses, piece.learned = piece.uses + 1, count
        self.stats.learned_steps += 1

    def _descend(self, loss: torch.Tensor) -> None:
        assert self._optimizer is not None
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        self._optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(weights, self.recipe.clip)
        if not bool(norm.isfinite()):  # host sync: whether it is a number
            self._reset()
            raise ArithmeticError("a gradient is not finite; what was learned is undone")
        self._optimizer.step()

    def _helps(self, piece: Piece, anchors: list[int], count: int, drafted: Drafted) -> bool:
        """Compares the adapter with none on unseen text, and undoes it if fewer tokens are accepted with it."""
        with torch.no_grad(), reading({}):
            without = self._draft(piece, anchors, count).accepted
        canvases = len(anchors)
        self.stats.comparisons.append(
            Comparison(canvases, float(without.float().mean()), float(drafted.accepted.float().mean()))
        )
        newest = self.stats.comparisons
        gain = sum(each.canvases * (each.with_adapter - each.without) for each in newest)
        if len(newest) < LEAST_COMPARED or gain >= 0:
            return True
        self._reset()
        self._rate /= 2
        self.stats.resets += 1
        return False

    def _reset(self) -> None:
        self.adapter.reset()
        self._masters = self._optimizer = self._usual_loss = None
        self.stats.comparisons.clear()

    def end(self, reason: str) -> None:
        """Learns no more, with one warning."""
        if self.stats.ended is not None:
            return
        self._masters = self._optimizer = None
        self.texts.clear()
        self.stats.ended = reason
        logger.warning("Learning ended (%s); drafting goes on.", reason)

    def _learnable(self) -> dict[nn.Module, Weights]:
        """The weights that steps change."""
        if self._masters is None:
            self._masters = self.adapter.masters()
            bias = self._masters[self.adapter.parts["head_bias"]]
            low_rank = [weight for part in self._masters.values() if part is not bias for weight in part]
            rates = [(low_rank, self.recipe.learning_rate), (list(bias), self.recipe.bias_rate)]
            groups = [{"params": weights, "lr": self._rate * rate} for weights, rate in rates]
            self._optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98), foreach=True)
        return self._masters

    def _anchors(self, piece: Piece, count: int) -> list[int]:
        """Where canvases begin: spread at random over the tokens to learn from."""
        first = max(piece.first, 1 if piece.states is None else 2)
        chosen = torch.randperm(count, generator=self._generator)[: self._num_canvases].sort().values
        last = piece.num_states + 1 if piece.states is not None else piece.end
        return [anchor for anchor in (chosen + piece.first).tolist() if first <= anchor <= last]

    def _draft(self, piece: Piece, anchors: list[int], count: int) -> Drafted:
        """Passes over a piece whose first `count` tokens to learn from are used."""
        end = piece.first + count
        ids = piece.ids[:end]
        known = ids.clamp(max=self.runner.model.config.vocab_size - 1) if self.vocabulary is None else ids
        noise = self.pupil.noise(self.pupil.canvas_length + self.pupil.block, self.vocab_size, self._generator)
        losses, weights, accepted = [], [], []
        for each in passes(self.pupil, known, anchors, noise.to(ids.device)):
            found = logits(self.runner, self.pupil, each, piece.states)
            if self.pupil.spec.mask_token_id is not None and self.vocabulary is None:
                found = self._without_mask(found)
            inside = each.places < end
            places = each.places.clamp(max=end - 1)
            at = (places - piece.first).clamp(min=0)
            labels = self._entry(ids[places], found.shape[-1]).masked_fill(~inside, -1)
            entries = self._entry(piece.token_ids[at], found.shape[-1])
            is_match = matches(found, labels)
            weight = draft_weights(is_match, self.recipe.decay, self.recipe.first_error)
            weight = weight * (inside & (entries >= 0).any(dim=-1))
            losses.append((weight * divergence(found, piece.values[at], entries)).sum())
            weights.append(weight.sum())
            accepted.append(accepted_lengths(is_match))
        total = torch.stack(weights).sum().clamp_min(1e-6)
        return Drafted(torch.stack(losses).sum() / total, torch.cat(accepted))

    def _without_mask(self, found: torch.Tensor) -> torch.Tensor:
        """The mask token is never drafted."""
        mask = self.pupil.spec.mask_token_id
        assert mask is not None
        if mask >= found.shape[-1]:
            return found
        is_mask = torch.arange(found.shape[-1], device=found.device) == mask
        return found.masked_fill(is_mask, torch.finfo(found.dtype).min)

    def _entry(self, token_ids: torch.Tensor, size: int) -> torch.Tensor:
        """The entries of the drafter's logits that stand for the target's tokens; -1 where there is none."""
        if self._entries is None:
            length = max(self.vocab_size, size)
            entries = torch.arange(length, device=token_ids.device)
            if self.vocabulary is None:
                entries = entries.masked_fill((entries >= size) | (entries == self.pupil.spec.mask_token_id), -1)
            else:
                own = torch.arange(len(self.vocabulary), device=token_ids.device)
                entries = torch.full_like(entries, -1).scatter(0, self.vocabulary.to(token_ids.device), own)
            self._entries = entries
        return self._entries[token_ids]


def _is_new(piece: Piece) -> bool:
    return piece.count - piece.learned >= LEAST_NEW or (piece.is_full and piece.learned < piece.count)
