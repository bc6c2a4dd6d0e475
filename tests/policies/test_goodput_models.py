"""Draft lengths by goodput on real models: exact texts, and costs measured on the loop itself."""

import importlib
import time
from typing import Any

import pytest
import torch
from conftest import LOOPS, drafter, failfast, plain, prompt, shared_drafter, target
from counters import count_from_the_start
from goodput_support import COSTS
from scripted import ScriptedDrafter

import hf_failfast
from hf_failfast.decoding import loop as decoding
from hf_failfast.decoding import round_costs as costs_module
from hf_failfast.decoding.round_costs import measured_costs
from hf_failfast.policies import POLICIES
from hf_failfast.policies.base import RoundCosts
from hf_failfast.policies.goodput import Goodput

generate_module = importlib.import_module("hf_failfast.generate")  # the attribute of that name is the function

GOODPUT = {"length_policy": "goodput", "return_dict_in_generate": True}
# Nothing but the drafter's own drafts.
ALONE = {"draft_tree": 0, "draft_lookup": 0, "draft_reuse": False}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["canvas_shift", "block_shift", "bidirectional", "shared"])
def test_identical_to_plain(kind: str, loop: str) -> None:
    """Gives plain `generate`'s text in both loops, through plain rounds, cut drafts and late passes."""
    proposer = shared_drafter() if kind == "shared" else drafter(kind, "llama")
    for seed in range(3):
        expected = plain(target("llama"), prompt(30, seed), max_new_tokens=90)
        output = LOOPS[loop](target("llama"), prompt(30, seed), proposer, max_new_tokens=90, **GOODPUT)
        assert torch.equal(output.sequences, expected)


@pytest.mark.parametrize("kind", ["canvas_shift", "shared"])  # one session for all sequences; a session per sequence
@pytest.mark.parametrize("num_rows", [2, 5])
def test_batches_are_identical_to_plain(num_rows: int, kind: str) -> None:
    """Batches with sequences of different lengths get plain `generate`'s texts."""
    proposer = shared_drafter() if kind == "shared" else drafter(kind, "llama")
    ids = torch.cat([prompt(20, seed) for seed in range(num_rows)])
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    arguments = {"attention_mask": mask, "max_new_tokens": 60, "pad_token_id": 0}
    expected = plain(target("llama"), ids, **arguments)
    output = failfast(target("llama"), ids, proposer, **arguments, **GOODPUT)
    assert torch.equal(output.sequences, expected)


@pytest.mark.parametrize("accept_lengths", [[0], [2, 0, 5], None])
def test_mixed_rounds_are_identical(accept_lengths: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain and drafted rounds in turn give the plain text, and `plain_rounds` counts the former."""
    monkeypatch.setattr(generate_module, "measured_costs", lambda *_: COSTS["bfloat16"])
    reference = plain(target("llama"), prompt(9), max_new_tokens=150)
    script = ScriptedDrafter(reference, accept_lengths, confidence=lambda index: 0.8)
    output = failfast(target("llama"), prompt(9), script, max_new_tokens=150, **GOODPUT, **ALONE)
    assert torch.equal(output.sequences, reference)
    stats = output.speculation
    assert stats.plain_rounds == sum(record.drafter_passes == 0 for record in stats.records)
    assert (stats.plain_rounds > 100) == (accept_lengths == [0])
    assert stats.as_dict()["plain_rounds"] == stats.plain_rounds


def test_host_reads(host_reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one host read per round and one per drafter pass, and the stats count them all."""
    monkeypatch.setattr(generate_module, "measured_costs", lambda *_: COSTS["gpu"])
    proposer = drafter("canvas_shift", "llama")
    count_from_the_start(proposer, host_reads, monkeypatch)
    options = {"max_new_tokens": 60, "eos_token_id": 119} | GOODPUT | ALONE
    stats = failfast(target("llama"), prompt(20), proposer, **options).speculation
    assert len(host_reads) == stats.host_reads == stats.rounds + stats.drafter_passes


def test_costs_are_measured_once_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are measured once per pair and size of batch and text, without random numbers or gradients."""
    calls: list[tuple[int, int]] = []
    original = costs_module.measure

    def counted(*args: Any) -> RoundCosts:
        calls.append(args[2:4])
        return original(*args)

    monkeypatch.setattr(costs_module, "measure", counted)
    model, proposer = target("qwen3"), drafter("canvas", "qwen3")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = measured_costs(model, proposer, 1, 50)
    assert torch.equal(torch.get_rng_state(), state)
    assert measured_costs(model, proposer, 1, 60) is first
    measured_costs(model, proposer, 1, 300)
    assert calls == [(1, 64), (1, 512)]
    assert [count for count, _ in first.verify][0] == 0
    assert all(seconds > 0 for _, seconds in first.draft + first.verify)
    assert not [name for name, value in model.named_parameters() if value.grad is not None]


def test_costs_are_those_of_whole_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs include the loop's own work, and a point for the drafter's reading of the prompt."""
    dismiss = decoding._dismiss

    def slow(*args: Any) -> None:
        time.sleep(0.01)
        dismiss(*args)

    monkeypatch.setattr(decoding, "_dismiss", slow)
    costs = costs_module.measure(target("llama"), drafter("canvas_shift", "llama"), 1, 64)
    assert all(seconds > 0.01 for _, seconds in costs.verify)
    assert costs.draft[0][1] < 0.01
    assert costs.draft[-1][0] >= 64


def test_a_second_turn_knows_what_the_drafter_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second turn the policy hears how much of the text the drafter has read before."""
    told: list[int] = []

    class Told(Goodput):
        def resume(self, num_read: int) -> None:
            told.append(num_read)
            super().resume(num_read)

    monkeypatch.setitem(POLICIES, "goodput", Told)
    monkeypatch.setattr(generate_module, "measured_costs", lambda *_: COSTS["gpu"])
    session = hf_failfast.Conversation(drafter("canvas_shift", "llama"))
    first = failfast(target("llama"), prompt(20), session, max_new_tokens=20, **GOODPUT).sequences
    failfast(target("llama"), torch.cat([first, prompt(5, 1)], dim=1), session, max_new_tokens=20, **GOODPUT)
    assert len(told) == 1
    assert 20 <= told[0] <= first.shape[1]


@pytest.mark.parametrize("option", [{"confidence_threshold": 0.5}, {"chunk_length": 3}, {"max_draft_length": 9}])
def test_the_other_rules_numbers_are_refused(option: dict[str, Any]) -> None:
    """Rejects the numbers of the confidence rule together with goodput."""
    with pytest.raises(ValueError, match=f"has no use for \\['{next(iter(option))}'\\]"):
        failfast(target("llama"), prompt(9), drafter("canvas", "llama"), **GOODPUT, **option)


def test_drafters_with_a_rule_of_their_own_are_refused() -> None:
    """Rejects a drafter that decides on lengths itself (`mode="reference"`)."""
    proposer = drafter("block_shift", "llama")
    reference = hf_failfast.drafters.masked.session.MaskedDrafter(
        proposer.model,
        proposer.spec,
        proposer.config,
        hf_failfast.drafters.masked.session.DraftingOptions(mode="reference"),
    )
    with pytest.raises(ValueError, match="needs a drafter of the target's tokenizer that drafts by chunks"):
        failfast(target("llama"), prompt(9), reference, **GOODPUT)
