"""The statistics of a generation equal counts made from outside."""

import json
from time import perf_counter
from typing import Any

import pytest
import torch
from conftest import LOOPS, drafter, failfast, plain, prompt, target
from counters import count_from_the_start, record_feeds
from scripted import ScriptedDrafter

from hf_failfast import SpecDecodingStats
from hf_failfast.compatibility import CACHE
from hf_failfast.decoding.stats import RoundRecord

OPTIONS = {"max_new_tokens": 50, "return_dict_in_generate": True}


def test_definitions() -> None:
    """Ratios are defined as in vLLM, and `as_dict` has exactly the documented keys."""
    stats = SpecDecodingStats()
    assert (stats.acceptance_rate, stats.mean_acceptance_length, stats.accepted_per_position) == (0.0, 0.0, [])
    for record in (RoundRecord(4, 2, 3, 1), RoundRecord(6, 0, 1, 2), RoundRecord(0, 0, 1, 0), RoundRecord(2, 2, 2, 1)):
        stats.observe(record)
    assert (stats.rounds, stats.drafter_passes, stats.drafted, stats.accepted, stats.emitted) == (4, 4, 12, 4, 7)
    assert stats.plain_rounds == 1
    assert stats.acceptance_rate == pytest.approx(4 / 12)
    assert stats.mean_acceptance_length == pytest.approx(7 / 4)
    assert stats.accepted_per_position == [2, 2, 0, 0, 0, 0]
    document = json.loads(json.dumps(stats.as_dict()))
    assert document["accepted_per_position"] == stats.accepted_per_position
    assert set(document) == {
        "rounds",
        "plain_rounds",
        "drafter_passes",
        "drafted",
        "accepted",
        "emitted",
        "acceptance_rate",
        "mean_acceptance_length",
        "accepted_per_position",
        "draft_seconds",
        "verify_seconds",
        "other_seconds",
        "host_reads",
        "drafter_errors",
        "learned_steps",
        "runner",
    }


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["canvas_shift", "block_shift", "bidirectional"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_counts(kind: str, loop: str, penalty: float) -> None:
    """Rounds, passes, drafted and emitted tokens equal those the models were fed."""
    model, proposer = target("qwen2"), drafter(kind)
    with record_feeds(model) as rounds, record_feeds(proposer.model) as passes:
        output = LOOPS[loop](
            model, prompt(20), proposer, repetition_penalty=penalty, confidence_threshold=0.01, **OPTIONS
        )
    stats = output.speculation
    assert type(stats) is SpecDecodingStats
    assert (stats.rounds, stats.drafter_passes, stats.emitted) == (len(rounds), len(passes), 50)
    assert stats.drafted == sum(len(feed.token_ids) for feed in rounds) - (20 + stats.rounds - 1)
    assert [record.emitted for record in stats.records] == [record.accepted + 1 for record in stats.records]
    assert len(stats.records) == stats.rounds
    assert sum(stats.accepted_per_position) == stats.accepted


def test_accepted_counts_of_a_script() -> None:
    """Accepted tokens exclude the bonus token and everything after the first wrong one."""
    reference = plain(target("llama"), prompt(9), max_new_tokens=60)
    script = ScriptedDrafter(reference, [3, 0, 10, 7])
    stats = failfast(target("llama"), prompt(9), script, max_draft_length=10, **OPTIONS).speculation
    assert [tuple(record) for record in stats.records[:7]] == [
        (10, 3, 4, 1),
        (10, 0, 1, 1),
        (10, 10, 11, 1),
        (10, 7, 8, 1),
        (10, 3, 4, 1),
        (10, 0, 1, 1),
        (10, 10, 11, 1),
    ]
    assert stats.accepted == sum(script.sessions[0].accepted)


@pytest.mark.parametrize("walked", [{}, {"repetition_penalty": 1.0001}])
@pytest.mark.parametrize("sees_eos", [True, False])
def test_a_last_draft_token_that_ends_the_text(sees_eos: bool, walked: dict[str, float]) -> None:
    """A draft whose last token ends the text emits no bonus token."""
    reference = plain(target("llama"), prompt(9), max_new_tokens=60)
    continuation = reference[0, 9:].tolist()
    index = next(i for i in range(4, 9) if continuation[i] not in continuation[:i])
    script = ScriptedDrafter(reference, sees_eos=sees_eos)
    options = OPTIONS | walked | {"eos_token_id": continuation[index], "pad_token_id": continuation[index]}
    output = failfast(target("llama"), prompt(9), script, **options)
    (record,) = output.speculation.records
    assert (record.accepted, record.emitted) == (index + 1, index + 1)
    assert output.sequences.shape[1] == 9 + index + 1
    assert output[CACHE].get_seq_length() == 9 + index


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_times_add_up(penalty: float) -> None:
    """The three times are positive and add up to at most the wall time, and to most of it."""
    started = perf_counter()
    output = failfast(target("qwen2"), prompt(20), drafter("canvas"), repetition_penalty=penalty, **OPTIONS)
    wall = perf_counter() - started
    stats = output.speculation
    assert min(stats.draft_seconds, stats.verify_seconds, stats.other_seconds) > 0
    total = stats.draft_seconds + stats.verify_seconds + stats.other_seconds
    assert 0.5 * wall < total <= wall
    assert stats.other_seconds < stats.draft_seconds + stats.verify_seconds


def chunks(stats: SpecDecodingStats, length: int) -> int:
    return sum(-(-record.drafted // length) for record in stats.records)


@pytest.mark.parametrize("eos", [{}, {"eos_token_id": 119, "pad_token_id": 119}])
@pytest.mark.parametrize("kind", ["canvas_shift", "block_shift", "bidirectional"])
def test_host_reads_of_the_fast_path(kind: str, eos: dict[str, int], host_reads: list[str], monkeypatch: Any) -> None:
    """The fast path reads from the device at most once per chunk and once per round, and reports it."""
    proposer = drafter(kind)
    count_from_the_start(proposer, host_reads, monkeypatch)
    output = failfast(
        target("qwen2"), prompt(20), proposer, confidence_threshold=0.02, chunk_length=4, **eos, **OPTIONS
    )
    stats = output.speculation
    measured = len(host_reads)
    assert stats.drafter_passes > stats.rounds, "no draft was extended"
    assert measured == stats.host_reads
    assert stats.rounds < measured <= stats.rounds + chunks(stats, 4)


def test_reads_are_seen(host_reads: list[str]) -> None:
    """The counter sees every way of reading a tensor."""
    value = torch.tensor(3)
    assert value.item() + int(value) + float(value) + value.tolist() + [0, 1, 2, 3][value] == 15
    if value > 2:
        host_reads.append("if")
    assert host_reads == ["item", "__int__", "__float__", "tolist", "__index__", "__bool__", "if"]


def test_host_reads_of_the_walking_path(host_reads: list[str]) -> None:
    """With processors every emitted token takes one read, besides those of the drafts."""
    reference = plain(target("llama"), prompt(9), max_new_tokens=60)
    script = ScriptedDrafter(reference, [3, 0, 10, 7])
    stats = failfast(target("llama"), prompt(9), script, repetition_penalty=1.0001, **OPTIONS).speculation
    # one for each round's draft, one per token, one per chunk; none for a last chunk at the cap
    assert stats.host_reads <= stats.rounds + stats.emitted + chunks(stats, 10)
    assert stats.host_reads >= stats.rounds + stats.emitted
