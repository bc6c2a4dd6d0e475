"""Draft lengths by goodput, in simulated time: against every fixed rule, and never much slower than plain."""

import math
import random
from itertools import product

import pytest
import torch
from goodput_support import COSTS, PROMPT, Text, goodput, ids, simulate

from hf_failfast import ConfidenceThreshold, FailFastConfig
from hf_failfast.policies.base import RoundCosts
from hf_failfast.policies.calibration import OnlineCalibration
from hf_failfast.policies.goodput import Goodput, seconds_at


@pytest.mark.parametrize("name", ["bfloat16", "gpu"])
@pytest.mark.parametrize("text", [Text(0.5), Text(0.75), Text(0.9)], ids=lambda text: str(text.likelihood))
def test_never_worse_than_the_tuned_rule(name: str, text: Text) -> None:
    """Reaches 98 % of the best confidence rule that a sweep finds, and beats the worst by 5 %."""
    ours, _ = simulate(goodput(COSTS[name]), text, COSTS[name], 1000)
    options = product((0.5, 0.7, 0.9), (2, 4, 8, 16), (8, 32))
    rules = [FailFastConfig(*values) for values in options]
    speedups = {rule: simulate(ConfidenceThreshold(rule), text, COSTS[name], 1000)[0] for rule in rules}
    assert ours > 0.98 * max(speedups.values())
    assert ours > 1.05 * min(speedups.values())


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("bias", [-0.3, 0.0, 0.9])
def test_a_useless_drafter_costs_next_to_nothing(name: str, bias: float) -> None:
    """A drafter whose tokens are all wrong, sure of them or not, slows a request down by less than 3 %."""
    text = Text(0.6, bias, is_useless=True)
    for num_tokens, prompt in product((128, 1000), (PROMPT, 300)):
        speedup, plain_share = simulate(goodput(COSTS[name]), text, COSTS[name], num_tokens, prompt)
        assert speedup > 0.97
        assert plain_share > 0.6


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("likelihood", [0.2, 0.4, 0.6, 0.8])
def test_never_much_slower_than_plain(name: str, likelihood: float) -> None:
    """Requests take at most 3 % longer than plain ones, however likely the drafted tokens are."""
    for num_tokens in (128, 500):
        assert simulate(goodput(COSTS[name]), Text(likelihood), COSTS[name], num_tokens)[0] > 0.97


def test_it_drafts_again_where_the_text_gets_easy() -> None:
    """After a useless start drafting begins again and reaches 1.7x over the whole text."""

    class Turning(Text):
        def chunk(self, position: int, length: int) -> tuple[list[float], list[bool]]:
            return Text(0.9, is_useless=position < 300).chunk(position, length)

    speedup, plain_share = simulate(goodput(COSTS["bfloat16"]), Turning(0.9), COSTS["bfloat16"], 1500)
    assert speedup > 1.7
    assert 0.1 < plain_share < 0.7


@pytest.mark.parametrize(("name", "least"), [("slow drafter", 1.5), ("float32", 1.2)])
def test_what_was_won_pays_for_trying_again(name: str, least: float) -> None:
    """Earlier gains pay for new tries: drafting returns soon after each hard passage."""

    class Mixed(Text):
        def chunk(self, position: int, length: int) -> tuple[list[float], list[bool]]:
            return Text(0.9 if position % 90 < 60 else 0.05).chunk(position, length)

    assert simulate(goodput(COSTS[name]), Mixed(0.9), COSTS[name], 600)[0] > least


def test_a_prompt_is_read_only_if_the_account_holds_it() -> None:
    """No draft begins that the account cannot pay for, reading the prompt included."""
    policy = goodput(COSTS["bfloat16"])
    policy.start(1, 4000)
    assert not policy.start_draft(1, 4000, 100)
    policy.observe([0])
    policy.resume(3990)  # the drafter has read it in an earlier call
    assert policy.start_draft(1, 4001, 100)


def test_calibration() -> None:
    """Probabilities begin as the confidence and learn from what was confirmed, by place and for all together."""
    calibration, chance = OnlineCalibration(), random.Random(0)
    assert calibration.probability(0, 0.6) == pytest.approx(0.6)
    assert calibration.probability(0, float("nan")) == calibration.probability(0, 0.0) == 0.0
    for _ in range(400):
        calibration.observe(0, 0.62, chance.random() < 0.9)  # too modest
        calibration.observe(5, 0.97, chance.random() < 0.25)  # too sure
    assert calibration.probability(0, 0.62) == pytest.approx(0.9, abs=0.05)
    assert calibration.probability(5, 0.97) == pytest.approx(0.25, abs=0.07)
    assert calibration.probability(9, 0.5) == pytest.approx(0.5)  # nothing was seen there
    assert calibration.probability(0, 0.3) < calibration.probability(0, 0.62)


def test_calibration_follows_the_text() -> None:
    """What was true of an earlier text is forgotten as another one goes on."""
    calibration, chance = OnlineCalibration(), random.Random(1)
    for likelihood in (0.9, 0.3, 0.8):
        for _ in range(600):
            calibration.observe(0, 0.6, chance.random() < likelihood)
        assert calibration.probability(0, 0.6) == pytest.approx(likelihood, abs=0.15)


def test_calibration_of_a_drafter_that_is_too_sure() -> None:
    """Log-odds twice as large as they should be halve the slope, at every place at once."""
    calibration, chance = OnlineCalibration(), random.Random(2)
    for _ in range(1500):
        odds = chance.uniform(-3, 3)
        calibration.observe(0, 1 / (1 + math.exp(-2 * odds)), chance.random() < 1 / (1 + math.exp(-odds)))
    assert calibration.slope == pytest.approx(0.5, abs=0.15)
    assert calibration.probability(3, 0.95) < 0.9
    calibration.fade(0.0)
    assert calibration.probability(3, 0.95) == pytest.approx(0.95)


def test_all_rows_are_in_the_account() -> None:
    """What is verified besides the draft is paid for, what it brings is booked, and no more is verified than the
    account holds."""
    policy, costs = goodput(COSTS["float32"]), COSTS["float32"]
    policy.start(1, 64)
    before, plain = policy.account, seconds_at(costs.verify, 0)
    policy.start_draft(1, 64, 0)  # no room for a draft
    policy.proposed([20], in_tree=False)
    policy.overtaken([2])
    policy.observe([0])
    assert policy.account == pytest.approx(before + 1 + 2 - seconds_at(costs.verify, 20) / plain)
    prices = policy.prices
    rows = next(count for count in range(64) if seconds_at(costs.verify, count + 1) / plain - 1 > policy.account)
    assert prices.gain(1.0, rows, in_tree=False) == -math.inf < prices.gain(1.0, rows - 1, in_tree=False)


def test_a_tree_has_its_own_price() -> None:
    """Rows of a tree cost what was measured for trees, and so does the tree as a whole."""
    costs = RoundCosts(((1, 1.0), (32, 2.0)), ((0, 10.0), (32, 20.0)), tree=((8, 20.0), (32, 26.0)))
    policy = goodput(costs)
    policy.start(1, 64)
    prices = policy.prices
    assert prices.gain(0.5, 8, in_tree=False) == pytest.approx(0.5 - 10 / 32 / 10)
    assert prices.gain(0.5, 8, in_tree=True) == pytest.approx(0.5 - 0.025)
    assert prices.surplus(16, 4) == pytest.approx((22.0 - 11.25) / 10)
    assert prices.surplus(65, 4) == math.inf


def test_a_likely_suggestion_spares_the_pass() -> None:
    """The drafter's pass is left out where the text suggests something likely, and only there."""
    for chance, is_drafted in ((0.05, True), (0.5, True), (0.97, False)):
        policy = goodput(COSTS["bfloat16"])
        simulate(policy, Text(0.75), COSTS["bfloat16"], 300)
        policy.offered([[chance, chance**2]])
        assert policy.start_draft(1, 365, 100) == is_drafted


def trained() -> Goodput:
    """A policy in the middle of a text, about to draft."""
    policy = goodput(COSTS["bfloat16"])
    simulate(policy, Text(0.75), COSTS["bfloat16"], 300)
    policy.account = 6.0
    assert policy.start_draft(1, 400, 100)
    return policy


def test_a_token_is_kept_or_cut_without_a_look_at_what_follows() -> None:
    """Whether a token is kept does not depend on later confidences, which depend on the token drawn."""
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
    """Whether a drafted token is verified does not depend on whether it ends the text."""
    for end in range(1, 9):
        confidence = torch.linspace(0.9, 0.3, 8)[None]
        with_end, without = trained(), trained()
        kept = with_end.decide(ids(confidence, end), confidence, torch.tensor([1]), can_extend=True).kept
        assert kept == [end]
        without.decide(ids(confidence), confidence, torch.tensor([1]), can_extend=False)
        assert with_end.cut(kept) == [min(without.cut([8])[0], end)]


def test_rows_share_one_decision() -> None:
    """Two sure and two hopeless sequences get a shorter draft than four sure ones, since they cost as much."""
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


def test_seconds_between_and_beyond_the_points() -> None:
    """Costs between and beyond the measured points lie on the lines through them."""
    points = ((1, 10.0), (3, 14.0), (7, 16.0))
    assert [seconds_at(points, count) for count in (0, 1, 2, 3, 5, 7, 9)] == [8.0, 10.0, 12.0, 14.0, 15.0, 16.0, 17.0]
