"""Measures once per process and pair what a drafter pass and a verification cost, loop overhead included."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from ..config import MOST_NODES, FailFastConfig
from ..drafters import DiffusionDrafter
from ..engine.cpu.packed_weights import is_prepacked
from ..engine.positions import num_positions
from ..policies.base import RoundCosts
from ..policies.calibration import OnlineCalibration
from ..policies.confidence import FixedLength
from ..policies.goodput import LONGEST_CHUNK, seconds_at
from .loop import Generation, accept, commit, prepare, propose, verify
from .refusals import fits_slots
from .trees import TreeDraft

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Draft lengths of the measured rounds; between and beyond them costs are taken to be linear.
DRAFT_LENGTHS = (0, 1, 3, 7, LONGEST_CHUNK, 2 * LONGEST_CHUNK)
TREE_SIZES, STEM = (8, 16, 32), 4  # nodes, and tokens of the draft among them
GENERATIONS, SWEEPS = 3, 6  # each generation reads the prompt, then sweeps over these lengths SWEEPS times
LONGEST_SECONDS = 2.0  # a sweep that ends later is the last one, if FEWEST_SWEEPS are done
FEWEST_SWEEPS = 3
SHORTEST_CONTEXT, LONGEST_CONTEXT = 64, 512
SHORTEST_ROOM = 8  # tokens after the context, for a round of each kind

# Used when the drafter fails during the measurement: the request drafts, and applies its own `drafter_errors`.
UNKNOWN = RoundCosts(((1, 0.0), (2, 0.0)), ((0, 1.0), (1, 1.0)))


@dataclass
class Known:
    """What is known of a pair, from call to call.

    costs: by all that they depend on. calibration: what the drafter's confidence is worth.
    """

    costs: dict[tuple[object, ...], RoundCosts] = field(default_factory=dict)
    calibration: OnlineCalibration = field(default_factory=OnlineCalibration)


_known: WeakKeyDictionary[PreTrainedModel, WeakKeyDictionary[DiffusionDrafter, Known]] = WeakKeyDictionary()
_one_at_a_time = threading.Lock()


def known_of(target: PreTrainedModel, drafter: DiffusionDrafter) -> Known:
    """What is known of the pair; it lives as long as both of them."""
    return _known.setdefault(target, WeakKeyDictionary()).setdefault(drafter, Known())


def measured_costs(
    target: PreTrainedModel, drafter: DiffusionDrafter, num_rows: int, num_tokens: int, has_trees: bool = False
) -> RoundCosts:
    """The costs of a batch of `num_rows` sequences of about `num_tokens` tokens, measured at the first use.

    has_trees: whether those of trees, and of a drafter that offers alternatives, are wanted.

    The measurement takes seconds. It decodes a text of its own and draws no random numbers. Raises ValueError on a
    target that the loop cannot take.
    """
    if not fits_slots(target):
        raise ValueError(
            "`length_policy='goodput'` times rounds of hf_failfast's own loop, which cannot take a "
            f"`{target.config.model_type}` target: use the default policy with `hf_failfast.assisted_generate`."
        )
    context = typical_context(target, drafter, num_tokens)
    packing = is_prepacked(target), is_prepacked(drafter)
    key = (target.dtype, target.device, packing, torch.get_num_threads(), num_rows, context, has_trees)
    with _one_at_a_time:
        known = known_of(target, drafter).costs
        if key not in known:
            try:
                known[key] = measure(target, drafter, num_rows, context, DRAFT_LENGTHS, has_trees)
            except DrafterFailed:
                return UNKNOWN
        return known[key]


def typical_context(target: PreTrainedModel, drafter: DiffusionDrafter, num_tokens: int) -> int:
    """A context that stands for texts of about `num_tokens` tokens, and leaves room to measure after it."""
    context = min(max(1 << (num_tokens - 1).bit_length(), SHORTEST_CONTEXT), LONGEST_CONTEXT)
    positions = num_positions(target.config.get_text_config(decoder=True))
    return min(context, positions // 2, drafter.window // 2 or LONGEST_CONTEXT)


@torch.no_grad()
def measure(
    target: PreTrainedModel,
    drafter: DiffusionDrafter,
    num_rows: int,
    context: int,
    draft_lengths: Sequence[int] = DRAFT_LENGTHS,
    has_trees: bool = False,
) -> RoundCosts:
    """Times greedy rounds of the loop after a prompt of `context` tokens, with one-chunk drafts of the given lengths
    in turn, and trees if they are wanted; how much of a draft is accepted is not known in advance.

    Raises DrafterFailed if the drafter does.
    """
    positions = num_positions(target.config.get_text_config(decoder=True))
    room = positions - context
    if room < SHORTEST_ROOM:
        raise ValueError(f"`length_policy='goodput'` cannot measure a target of {positions} positions.")
    draft_lengths = [count for count in draft_lengths if count <= room // 4]
    sizes = [size for size in TREE_SIZES if size <= room // 4] if has_trees else []
    sweep = [*((count, 0) for count in draft_lengths), *((STEM, size) for size in sizes)]
    config = GenerationConfig(
        max_length=context + min(room, 2 + SWEEPS * sum(count + 1 for count, _ in sweep)), do_sample=False
    )
    config._pad_token_tensor = None
    timer = RoundTimer()
    began, num_sweeps = perf_counter(), 0
    for _ in range(GENERATIONS):
        policy = FixedLength(max(draft_lengths))
        generation = prepare(
            target,
            torch.zeros(num_rows, context, dtype=torch.long, device=target.device),
            LogitsProcessorList(),
            StoppingCriteriaList(),
            config,
            drafter=drafter,
            policy=policy,
            config=FailFastConfig(draft_tree=MOST_NODES if sizes else 0),
            cache=DynamicCache(config=target.config.get_text_config(decoder=True)),
        )
        timer.round(generation, policy, 1)  # after the prompt
        for _ in range(SWEEPS):
            for length, size in sweep:
                timer.round(generation, policy, length, size)
            num_sweeps += 1
            if is_over := num_sweeps >= FEWEST_SWEEPS and perf_counter() - began > LONGEST_SECONDS:
                break
        if is_over:
            break
    return timer.costs


class RoundTimer:
    """The shortest time of each kind of round, since noise only adds.

    drafting: seconds from the start of a draft until its confidences are known, by the tokens that the drafter read
        besides the last one; the first draft reads the whole prompt. verifying: the rest of the round, by the tokens
        drafted.
    """

    def __init__(self) -> None:
        self.drafting: dict[int, float] = {}
        self.verifying: dict[int, float] = {}
        self._trees: list[tuple[int, int, float]] = []  # nodes, tokens read, and the whole round
        self._num_read = 0  # tokens of the text that the drafter had read when its last draft began

    @property
    def costs(self) -> RoundCosts:
        """Of the rounds so far. A tree is made while drafting is timed; here it is part of what follows the pass."""
        draft, verify = _ascending(self.drafting), _ascending(self.verifying)
        trees: dict[int, float] = {}
        for size, num_read, seconds in self._trees:
            _note(trees, size, max(seconds - seconds_at(draft, num_read), 0.0))
        return RoundCosts(draft, verify, _ascending(trees) if len(trees) > 1 else ())

    def round(self, generation: Generation, policy: FixedLength, length: int, size: int = 0) -> None:
        """One round with a draft of `length` tokens, or of as many as there is room for, in a tree of `size` nodes;
        no round if the text is full.

        Raises DrafterFailed.
        """
        if not generation.is_running:
            return
        num_tokens, is_first = max(generation.sequences.known.lengths), not generation.stats.rounds
        self._num_read *= not is_first
        policy.chunk_length = policy.max_draft_length = length
        if generation.proposals is not None and generation.proposals.trees is not None:
            generation.proposals.trees.max_nodes = size
        started = perf_counter()
        draft = propose(generation)
        draft.confidence.tolist()  # host sync: the draft is done
        drafted = perf_counter()
        verified = verify(generation, draft)
        outcome = accept(generation, draft, verified)
        commit(generation, draft, verified, outcome)
        if generation.session.error is not None:
            raise DrafterFailed("The drafter failed while the costs of drafting were measured.")
        ended, num_read = perf_counter(), num_tokens - self._num_read - 1
        if draft.passes:
            self._num_read = num_tokens
        if isinstance(draft, TreeDraft):
            self._trees.append((len(draft), num_read + max(draft.own), ended - started))
            return
        if len(draft):
            _note(self.drafting, num_read + len(draft), drafted - started)
        if not is_first:  # which reads the prompt
            _note(self.verifying, len(draft), ended - drafted)


class DrafterFailed(RuntimeError):
    """The drafter failed, so that no costs are known."""


def _note(shortest: dict[int, float], count: int, seconds: float) -> None:
    shortest[count] = min(seconds, shortest.get(count, seconds))


def _ascending(seconds: dict[int, float]) -> tuple[tuple[int, float], ...]:
    """Points at which no shorter draft takes longer than a longer one: a measurement that did was disturbed."""
    counts = sorted(seconds)
    return tuple((count, min(seconds[other] for other in counts if other >= count)) for count in counts)
