"""What a drafter pass and a verification cost on this machine, the loop's own work included; measured once per process
and pair."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from ..config import FailFastConfig
from ..drafters import DiffusionDrafter
from ..engine.cpu.packed_weights import is_prepacked
from ..policies.base import Decision
from ..policies.confidence import FixedLength
from ..policies.goodput import LONGEST_CHUNK, RoundCosts
from .loop import failfast_decoding
from .refusals import num_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Draft lengths of the measured rounds; between and beyond them costs are taken to be linear.
DRAFT_LENGTHS = (0, 1, 3, 7, LONGEST_CHUNK, 2 * LONGEST_CHUNK)
GENERATIONS, SWEEPS = 3, 6  # each generation reads the prompt and sweeps so often over these lengths
LONGEST_SECONDS = 2.0  # afterwards the sweep that runs is the last one, behind at least FEWEST_SWEEPS
FEWEST_SWEEPS = 3
SHORTEST_CONTEXT, LONGEST_CONTEXT = 64, 512
SHORTEST_ROOM = 8  # tokens behind the context, for a round of each kind

# Of a drafter that fails: the request shall draft, and do about the failure what it was asked to.
UNKNOWN = RoundCosts(((1, 0.0), (2, 0.0)), ((0, 1.0), (1, 1.0)))

_Measured = dict[tuple[object, ...], RoundCosts]
_measured: WeakKeyDictionary[PreTrainedModel, WeakKeyDictionary[DiffusionDrafter, _Measured]] = WeakKeyDictionary()
_one_at_a_time = threading.Lock()


def measured_costs(target: PreTrainedModel, drafter: DiffusionDrafter, num_rows: int, num_tokens: int) -> RoundCosts:
    """The costs of a batch of `num_rows` texts of about `num_tokens` tokens, measured at the first use in the process.

    The measurement takes seconds. It decodes a text of its own and draws no random numbers.
    """
    context = min(max(1 << (num_tokens - 1).bit_length(), SHORTEST_CONTEXT), LONGEST_CONTEXT)
    context = min(context, num_positions(target) // 2)
    packing = is_prepacked(target), is_prepacked(drafter)
    key = (target.dtype, target.device, packing, torch.get_num_threads(), num_rows, context)
    with _one_at_a_time:
        known = _measured.setdefault(target, WeakKeyDictionary()).setdefault(drafter, {})
        if key not in known:
            try:
                known[key] = measure(target, drafter, num_rows, context)
            except DrafterFailed:
                return UNKNOWN
        return known[key]


def measure(
    target: PreTrainedModel,
    drafter: DiffusionDrafter,
    num_rows: int,
    context: int,
    draft_lengths: Sequence[int] = DRAFT_LENGTHS,
) -> RoundCosts:
    """Times greedy rounds behind a prompt of so many tokens, as they are: what is accepted is not known before.

    Raises DrafterFailed if the drafter does.
    """
    positions = num_positions(target)
    room = positions - context
    if room < SHORTEST_ROOM:
        raise ValueError(f"`length_policy='goodput'` cannot measure a target of {positions} positions.")
    draft_lengths = [count for count in draft_lengths if count <= room // 4]
    room = min(room, 2 + SWEEPS * sum(count + 1 for count in draft_lengths))
    config = GenerationConfig(max_length=context + room, do_sample=False)
    config._pad_token_tensor = None
    timer = RoundTimer(draft_lengths)
    for _ in range(GENERATIONS):
        if timer.is_over:
            break
        with suppress(MeasurementOver):
            failfast_decoding(
                target,
                torch.zeros(num_rows, context, dtype=torch.long, device=target.device),
                LogitsProcessorList(),
                StoppingCriteriaList(),
                config,
                drafter=drafter,
                policy=timer,
                config=FailFastConfig(),
                cache=DynamicCache(config=target.config.get_text_config(decoder=True)),
            )
    if len(timer.drafting) < 2:
        raise DrafterFailed("The drafter failed while the costs of drafting were measured.")
    return RoundCosts(_ascending(timer.drafting), _ascending(timer.verifying))


class DrafterFailed(RuntimeError):
    """No costs are known."""


class MeasurementOver(BaseException):
    """Ends a generation whose further rounds nobody needs; no error of the drafter's, which the loop would catch."""


class RoundTimer(FixedLength):
    """Drafts of given lengths in turn, one chunk each, and the times that their rounds take.

    drafting: seconds from the start of a draft until its confidences are known, by the tokens that the drafter was fed
        beside the last one; the first draft reads the whole prompt. verifying: the rest of the time until the next
        round, by the tokens drafted. Of each count the shortest time, since noise only adds.
    """

    def __init__(self, draft_lengths: Sequence[int]) -> None:
        super().__init__(max(draft_lengths))
        self.draft_lengths = draft_lengths
        self.drafting: dict[int, float] = {}
        self.verifying: dict[int, float] = {}
        self.num_sweeps = 0
        self._began = perf_counter()

    @property
    def is_over(self) -> bool:
        return self.num_sweeps >= FEWEST_SWEEPS and perf_counter() - self._began > LONGEST_SECONDS

    def start(self, num_rows: int, num_tokens: int) -> None:
        self._schedule = self._lengths()
        self._num_read = self._num_tokens = 0  # of the text, by the drafter; as far as it is known in this round
        self._length, self._seconds = 0, 0.0  # of this round's draft
        self._round_began: float | None = None  # None: it will not be timed
        self._is_between_rounds = True

    def _lengths(self) -> Iterator[int]:
        yield 1  # behind the prompt
        for _ in range(SWEEPS):
            yield from self.draft_lengths
            self.num_sweeps += 1
            if self.is_over:
                return

    def start_draft(self, num_rows: int, num_tokens: int, room: int) -> bool:
        if self._is_between_rounds:  # in a batch without a session of its own each row starts a draft
            self._next_round(num_tokens)
        self._length = max(min(self._length, room), 0)
        self.chunk_length = self._length
        self._draft_began = perf_counter()
        return self._length > 0

    def _next_round(self, num_tokens: int) -> None:
        now = perf_counter()
        if self._round_began is not None:
            _note(self.verifying, self._length, now - self._round_began - self._seconds)
        length = next(self._schedule, None)
        if length is None:
            raise MeasurementOver
        self._round_began = now if self._num_tokens else None  # the first round reads the prompt
        self._num_tokens, self._length, self._seconds = num_tokens, length, 0.0
        self._is_between_rounds = False

    def decide(
        self, token_ids: torch.Tensor, confidence: torch.Tensor, eos_token_ids: torch.Tensor | None, can_extend: bool
    ) -> Decision:
        confidence.tolist()  # host sync: the draft is done
        self._seconds += perf_counter() - self._draft_began
        return super().decide(token_ids, confidence, None, can_extend=False)

    def observe(self, num_accepted: Sequence[int]) -> None:
        if self._seconds:
            _note(self.drafting, self._num_tokens - self._num_read - 1 + self._length, self._seconds)
            self._num_read = self._num_tokens
        self._is_between_rounds = True


def _note(shortest: dict[int, float], count: int, seconds: float) -> None:
    shortest[count] = min(seconds, shortest.get(count, seconds))


def _ascending(seconds: dict[int, float]) -> tuple[tuple[int, float], ...]:
    """Points in which no shorter draft takes longer than a longer one: what took longer was disturbed."""
    counts = sorted(seconds)
    return tuple((count, min(seconds[other] for other in counts if other >= count)) for count in counts)
