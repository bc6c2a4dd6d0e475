"""What a drafter pass and a verification cost on this machine, measured once per process and pair."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from .drafters import DiffusionDrafter
from .goodput import LONGEST_CHUNK, RoundCosts
from .length_policy import FixedLength
from .prepacking import is_prepacked
from .rows import Rows
from .support import num_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Draft lengths of the measured rounds; between and beyond them costs are taken to be linear.
DRAFT_LENGTHS = (0, 1, 3, 7, LONGEST_CHUNK, 2 * LONGEST_CHUNK)
SWEEPS = 12  # over these lengths; the first warms up, of the others the fastest counts, since noise only adds
FEWEST_SWEEPS, LONGEST_SECONDS = 3, 2.0  # of more sweeps those are left out that would end later
SHORTEST_CONTEXT, LONGEST_CONTEXT = 64, 512

_Measured = dict[tuple[object, ...], RoundCosts]
_measured: WeakKeyDictionary[PreTrainedModel, WeakKeyDictionary[DiffusionDrafter, _Measured]] = WeakKeyDictionary()
_one_at_a_time = threading.Lock()


def measured_costs(target: PreTrainedModel, drafter: DiffusionDrafter, num_rows: int, num_tokens: int) -> RoundCosts:
    """The costs of a batch of `num_rows` texts of about `num_tokens` tokens, measured at the first use in the process.

    The measurement takes seconds. It runs rounds on tokens and K/V of its own and draws no random numbers.
    """
    context = min(max(1 << (num_tokens - 1).bit_length(), SHORTEST_CONTEXT), LONGEST_CONTEXT)
    context = min(context, num_positions(target) // 2)
    packing = is_prepacked(target), is_prepacked(drafter)
    key = (target.dtype, target.device, packing, torch.get_num_threads(), num_rows, context)
    with _one_at_a_time:
        known = _measured.setdefault(target, WeakKeyDictionary()).setdefault(drafter, {})
        if key not in known:
            known[key] = measure(target, drafter, num_rows, context)
        return known[key]


@torch.no_grad()
def measure(
    target: PreTrainedModel,
    drafter: DiffusionDrafter,
    num_rows: int,
    context: int,
    draft_lengths: Sequence[int] = DRAFT_LENGTHS,
) -> RoundCosts:
    """Times rounds behind a context of so many tokens, in which nothing is accepted."""
    rounds = SWEEPS * len(draft_lengths)
    room = num_positions(target) - context - rounds
    if room < draft_lengths[1]:
        positions = num_positions(target)
        raise ValueError(f"`length_policy='goodput'` cannot measure a target of {positions} positions.")
    draft_lengths = [count for count in draft_lengths if count <= room]
    capacity = context + rounds + 2 * max(draft_lengths)
    session = drafter.start_batch(target, capacity, None, num_rows)
    runner = drafter.runners.target(target, session.target_layers)
    cache = runner.new_cache(capacity, num_rows)
    ids = torch.zeros(num_rows, capacity, dtype=torch.long, device=target.device)
    length = context

    def verify(count: int) -> float:
        """Feeds what the target has not seen, and so many draft tokens."""
        seen = cache.get_seq_length()
        started = perf_counter()
        runner(ids[:, seen : length + count], cache, rows=count + 1).argmax(dim=-1).tolist()
        seconds = perf_counter() - started
        cache.rollback(length)
        if runner.hidden_states is not None:
            session.observe_rows(list(runner.hidden_states[:, None, : length - seen]))
        return seconds

    def draft(count: int) -> float:
        started = perf_counter()
        rows = Rows.full(ids[:, :length])
        session.draft_rows(rows, FixedLength(max(count, 1)), [max(count, 1)] * num_rows).confidence.tolist()
        session.accept_rows([0] * num_rows)
        return perf_counter() - started

    verify(0)
    times: dict[int, list[tuple[float, float]]] = {count: [] for count in draft_lengths}
    began = perf_counter()
    for sweep in range(SWEEPS):
        if sweep >= FEWEST_SWEEPS and perf_counter() - began > LONGEST_SECONDS * sweep / (sweep + 1):
            break
        for count in draft_lengths:
            length += 1
            seconds = draft(count), verify(count)
            if sweep:
                times[count].append(seconds)
    drafting = {count: min(pair[0] for pair in pairs) for count, pairs in times.items() if count}
    verifying = {count: min(pair[1] for pair in pairs) for count, pairs in times.items()}
    return RoundCosts(_ascending(drafting), _ascending(verifying))


def _ascending(seconds: dict[int, float]) -> tuple[tuple[int, float], ...]:
    """Points in which no shorter draft takes longer than a longer one: what took longer was disturbed."""
    return tuple((count, min(value for other, value in seconds.items() if other >= count)) for count in seconds)
