"""Draft lengths by goodput: on simulated time against every fixed rule, and on real models for exactness."""

import importlib
import random
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from conftest import LOOPS, drafter, failfast, plain, prompt, shared_drafter, target
from counters import count_from_the_start
from scripted import ScriptedDrafter

import hf_failfast
from hf_failfast import ConfidenceThreshold, FailFastConfig, LengthPolicy
from hf_failfast import costs as costs_module
from hf_failfast.costs import measured_costs
from hf_failfast.goodput import Calibration, Goodput, RoundCosts, seconds_at

generate_module = importlib.import_module("hf_failfast.generate")  # the attribute of that name is the function

GOODPUT = {"length_policy": "goodput", "return_dict_in_generate": True}

# Milliseconds; the first two as measured on two CPU cores (SmolLM2-135M-Instruct and the bundled drafter, bfloat16
# and float32), the others after a GPU's roofline: verification is nearly free there.
COSTS = {
    "bfloat16": RoundCosts(
        ((1, 4.8), (3, 5.1), (8, 5.9), (16, 7.2)), ((0, 34.6), (1, 35.3), (3, 36.2), (7, 39.1), (15, 45.2), (31, 59.1))
    ),
    "float32": RoundCosts(
        ((1, 11.6), (3, 21.5), (8, 26.0), (16, 31.0)), ((0, 50.0), (1, 98.0), (3, 110.0), (7, 161.0), (31, 313.0))
    ),
    "slow drafter": RoundCosts(((1, 15.0), (8, 17.0), (16, 19.0)), ((0, 34.6), (3, 36.2), (15, 45.2), (31, 59.1))),
    "gpu": RoundCosts(((1, 1.2), (32, 1.3)), ((0, 3.8), (15, 3.9), (63, 4.1))),
}


@dataclass(frozen=True)
class Text:
    """A text whose every token the drafter finds with some probability, of which its confidence knows something.

    likelihood: the mean probability; it wanders over the text. bias: added to every confidence.
    """

    likelihood: float
    bias: float = 0.0
    is_useless: bool = False

    def chunk(self, position: int, length: int) -> tuple[list[float], list[bool]]:
        """Confidence and truth of the tokens from `position` on, drafted in one pass."""
        confidence, is_right = [], []
        for place in range(length):
            noise = random.Random(f"{self.likelihood} {position + place}")
            wave = 0.2 * ((position // 40) % 3 - 1)
            probability = self.likelihood + wave + noise.uniform(-0.3, 0.3) - 0.01 * place
            probability = min(max(probability, 0.02), 0.99)
            is_right.append(noise.random() < probability and not self.is_useless)
            confidence.append(min(max(probability + self.bias, 0.01), 0.999))
        return confidence, is_right


def ids(confidence: torch.Tensor, end: int = 0) -> torch.Tensor:
    """Token ids (B, n) with token 1 in place `end`, if any."""
    places = torch.arange(1, confidence.shape[1] + 1)
    return (places == end).long().expand_as(confidence)


def simulate(policy: LengthPolicy, text: Text, costs: RoundCosts, num_tokens: int) -> tuple[float, float]:
    """(speedup over plain rounds, share of plain rounds) in simulated time."""
    policy.start(1, 64)
    time, length, read, rounds, plain_rounds = 0.0, 0, -1, 0, 0
    while length < num_tokens:
        right: list[bool] = []
        extend = policy.start_draft(1, 64 + length, num_tokens - length - 1)
        plain_rounds += not extend
        is_drafting = extend
        while extend:
            count = min(policy.chunk_length, policy.max_draft_length - len(right))
            confidence, is_right = text.chunk(length + len(right), count)
            time += seconds_at(costs.draft, length + len(right) - read - 1 + count)
            read = length + len(right)
            right += is_right
            can_extend = len(right) < policy.max_draft_length
            values = torch.tensor([confidence])
            (extend,) = policy.decide(ids(values), values, None, can_extend).extend
        if is_drafting:
            right = right[: policy.cut([len(right)])[0]]
        time += seconds_at(costs.verify, len(right))
        accepted = min((right + [False]).index(False), num_tokens - length - 1)
        policy.observe([accepted])
        length += accepted + 1
        rounds += 1
    return length * seconds_at(costs.verify, 0) / time, plain_rounds / rounds


def goodput(costs: RoundCosts) -> Goodput:
    return Goodput(lambda num_rows, num_tokens: costs)


@pytest.mark.parametrize("name", ["bfloat16", "gpu"])
@pytest.mark.parametrize("text", [Text(0.5), Text(0.75), Text(0.9)], ids=lambda text: str(text.likelihood))
def test_never_worse_than_the_tuned_rule(name: str, text: Text) -> None:
    """The rule that a user would find by a sweep would beat the one that is to make sweeps unnecessary."""
    ours, _ = simulate(goodput(COSTS[name]), text, COSTS[name], 1000)
    options = product((0.5, 0.7, 0.9), (2, 4, 8, 16), (8, 32))
    rules = [FailFastConfig(*values) for values in options]
    speedups = {rule: simulate(ConfidenceThreshold(rule), text, COSTS[name], 1000)[0] for rule in rules}
    assert ours > 0.98 * max(speedups.values())
    assert ours > 1.05 * min(speedups.values())


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("bias", [-0.3, 0.0, 0.9])
def test_a_useless_drafter_costs_next_to_nothing(name: str, bias: float) -> None:
    """A drafter whose tokens are all wrong, and who may be sure of them, would slow a request down."""
    text = Text(0.6, bias, is_useless=True)
    for num_tokens in (128, 1000):
        speedup, plain_share = simulate(goodput(COSTS[name]), text, COSTS[name], num_tokens)
        assert speedup > 0.97
        assert plain_share > 0.6


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("likelihood", [0.2, 0.4, 0.6, 0.8])
def test_never_much_slower_than_plain(name: str, likelihood: float) -> None:
    """Drafting would go on where its tokens are not worth its time."""
    for num_tokens in (128, 500):
        assert simulate(goodput(COSTS[name]), Text(likelihood), COSTS[name], num_tokens)[0] > 0.97


def test_it_drafts_again_where_the_text_gets_easy() -> None:
    """A drafter that once lost would stay away for good."""

    class Turning(Text):
        def chunk(self, position: int, length: int) -> tuple[list[float], list[bool]]:
            return Text(0.9, is_useless=position < 300).chunk(position, length)

    speedup, plain_share = simulate(goodput(COSTS["bfloat16"]), Turning(0.9), COSTS["bfloat16"], 1500)
    assert speedup > 1.7
    assert 0.1 < plain_share < 0.7


def test_calibration() -> None:
    """Confidence would be taken at its word, or its place in the chunk not matter."""
    calibration = Calibration()
    assert calibration.probability(0, 0.6) == 0.6
    assert calibration.probability(0, float("nan")) == calibration.probability(0, 0.0) == 0.0
    for step in range(400):
        calibration.observe(0, 0.62, step % 10 < 9)  # too modest
        calibration.observe(5, 0.97, step % 4 < 1)  # too sure
    assert calibration.probability(0, 0.62) == pytest.approx(0.9, abs=0.05)
    assert calibration.probability(5, 0.97) == pytest.approx(0.25, abs=0.05)
    assert calibration.probability(0, 0.3) == pytest.approx(0.3, abs=0.05)


def trained() -> Goodput:
    """A policy in the middle of a text, about to draft."""
    policy = goodput(COSTS["bfloat16"])
    simulate(policy, Text(0.75), COSTS["bfloat16"], 300)
    policy.account = 6.0
    assert policy.start_draft(1, 400, 100)
    return policy


def test_a_token_is_kept_or_cut_without_a_look_at_what_follows() -> None:
    """The confidence behind a token depends on which token was drawn: to cut by it would favour some tokens."""
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(60):
        confidence = torch.rand(1, 8, generator=generator).sqrt()
        other = confidence.clone()
        place = int(torch.randint(1, 8, (), generator=generator))
        other[:, place:] = torch.rand(1, 8 - place, generator=generator)
        lengths = []
        for values in (confidence, other):
            policy = trained()
            policy.decide(ids(values), values, None, can_extend=False)
            lengths.append(min(policy.cut([8])[0], place))
        assert lengths[0] == lengths[1]
        seen.add(lengths[0])
    assert len(seen) > 3


def test_an_end_of_sequence_cuts_nothing_before_it() -> None:
    """Whether a drafted token is verified would depend on whether it ends the text."""
    for end in range(1, 9):
        confidence = torch.linspace(0.9, 0.3, 8)[None]
        with_end, without = trained(), trained()
        kept = with_end.decide(ids(confidence, end), confidence, torch.tensor([1]), can_extend=True).kept
        assert kept == [end]
        without.decide(ids(confidence), confidence, torch.tensor([1]), can_extend=False)
        assert with_end.cut(kept) == [min(without.cut([8])[0], end)]


def test_rows_share_one_decision() -> None:
    """Two sure rows and two lost ones cost what four cost: their draft would be as long as that of four sure ones."""
    lengths = []
    for confidence in (torch.full((4, 8), 0.5), torch.tensor([[0.5] * 8, [0.5] * 8, [0.02] * 8, [0.02] * 8])):
        policy = goodput(COSTS["bfloat16"])
        policy.start(4, 64)
        assert policy.start_draft(4, 64, 100)
        decision = policy.decide(ids(confidence), confidence, None, can_extend=True)
        assert len(set(decision.extend)) == 1
        lengths.append(policy.cut([8] * 4)[0])
        policy.observe([0] * 4)
    assert lengths[0] > lengths[1] > 0


# On real models


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["canvas_shift", "block_shift", "bidirectional", "shared"])
def test_identical_to_plain(kind: str, loop: str) -> None:
    """Plain rounds, cut drafts or a pass after many plain rounds would leave a wrong token in a cache."""
    proposer = shared_drafter() if kind == "shared" else drafter(kind, "llama")
    for seed in range(3):
        expected = plain(target("llama"), prompt(30, seed), max_new_tokens=90)
        output = LOOPS[loop](target("llama"), prompt(30, seed), proposer, max_new_tokens=90, **GOODPUT)
        assert torch.equal(output.sequences, expected)


@pytest.mark.parametrize("kind", ["canvas_shift", "shared"])  # rows in one session; a session per row
@pytest.mark.parametrize("num_rows", [2, 5])
def test_batches_are_identical_to_plain(num_rows: int, kind: str) -> None:
    """Rows of different lengths would be cut or probed apart from their caches."""
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
    """Plain and drafted rounds in turn would lose or repeat a token."""
    monkeypatch.setattr(generate_module, "measured_costs", lambda *_: COSTS["bfloat16"])
    reference = plain(target("llama"), prompt(9), max_new_tokens=150)
    script = ScriptedDrafter(reference, accept_lengths, confidence=lambda index: 0.8)
    output = failfast(target("llama"), prompt(9), script, max_new_tokens=150, **GOODPUT)
    assert torch.equal(output.sequences, reference)
    stats = output.speculation
    assert stats.plain_rounds == sum(record.drafter_passes == 0 for record in stats.records)
    assert (stats.plain_rounds > 100) == (accept_lengths == [0])
    assert stats.as_dict()["plain_rounds"] == stats.plain_rounds


def test_host_reads(host_reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Confidences would be fetched beside the decision, or one by one."""
    monkeypatch.setattr(generate_module, "measured_costs", lambda *_: COSTS["gpu"])
    proposer = drafter("canvas_shift", "llama")
    count_from_the_start(proposer, host_reads, monkeypatch)
    stats = failfast(target("llama"), prompt(20), proposer, max_new_tokens=60, eos_token_id=119, **GOODPUT).speculation
    assert len(host_reads) == stats.host_reads == stats.rounds + stats.drafter_passes


def test_costs_are_measured_once_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request would pay for the measurement, or another's setting be taken; or the caller's samples change."""
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


def test_seconds_between_and_beyond_the_points() -> None:
    """An unmeasured length would cost nothing, or as much as the next one measured."""
    points = ((1, 10.0), (3, 14.0), (7, 16.0))
    assert [seconds_at(points, count) for count in (0, 1, 2, 3, 5, 7, 9)] == [8.0, 10.0, 12.0, 14.0, 15.0, 16.0, 17.0]


@pytest.mark.parametrize("option", [{"confidence_threshold": 0.5}, {"chunk_length": 3}, {"max_draft_length": 9}])
def test_the_other_rules_numbers_are_refused(option: dict[str, Any]) -> None:
    """A number would be dropped in silence."""
    with pytest.raises(ValueError, match=f"has no use for \\['{next(iter(option))}'\\]"):
        failfast(target("llama"), prompt(9), drafter("canvas", "llama"), **GOODPUT, **option)


def test_drafters_with_a_rule_of_their_own_are_refused() -> None:
    """The policy would learn from drafts whose lengths it did not decide."""
    proposer = drafter("block_shift", "llama")
    reference = hf_failfast.drafters.masked.MaskedDrafter(
        proposer.model, proposer.spec, proposer.config, hf_failfast.drafters.masked.DraftingOptions(mode="reference")
    )
    with pytest.raises(ValueError, match="needs a drafter of the target's tokenizer that drafts by chunks"):
        failfast(target("llama"), prompt(9), reference, **GOODPUT)
