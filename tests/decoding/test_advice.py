"""Advice on a generation: each sign is named if the numbers show it, and only then."""

import pytest

from hf_failfast.decoding.advice import SIGNS
from hf_failfast.decoding.stats import RoundRecord, SpecDecodingStats


def stats(
    rounds: int = 40, drafted: int = 4, accepted: int = 2, passes: int = 1, **seconds: float
) -> SpecDecodingStats:
    """`rounds` equal rounds; a drafter pass costs a third of a target's, unless `seconds` says otherwise."""
    made = SpecDecodingStats(**{"draft_seconds": 1.0, "verify_seconds": 3.0, "other_seconds": 0.1} | seconds)
    for _ in range(rounds):
        made.observe(RoundRecord(drafted, accepted, accepted + 1, passes))
    return made


def test_a_pair_that_pays_gets_no_advice() -> None:
    assert stats().advice() == []
    assert stats().advice(speedup=1.5, other_speedup=1.2) == []


SEEN = {
    "no draft at all": (stats(drafted=0, accepted=0, draft_seconds=1.5), "nothing was drafted in 40 rounds"),
    "acceptance under 20 %": (stats(drafted=10, accepted=1), "10% of the drafted tokens"),
    "drafting dominates": (stats(draft_seconds=4.0), "drafting took 56% of the time"),
    "verifying dominates and brings few tokens": (
        stats(drafted=2, accepted=0, draft_seconds=0.5), "verifying took 83% of the time for 1.0 tokens",
    ),
    "verifying dominates and nearly all is accepted": (stats(accepted=4, draft_seconds=0.1), "room for longer drafts"),
    "the host dominates": (stats(other_seconds=4.0), "50% of the time was neither"),
}  # fmt: skip


@pytest.mark.parametrize(("meaning", "case"), SEEN.items(), ids=SEEN)
def test_a_sign_is_named(meaning: str, case: tuple[SpecDecodingStats, str]) -> None:
    numbers, words = case
    assert any(words in line for line in numbers.advice())
    assert [sign.meaning for sign in SIGNS if sign.seen(numbers)].count(meaning) == 1


def test_most_rounds_are_plain() -> None:
    mixed = stats(rounds=12)
    for _ in range(30):
        mixed.observe(RoundRecord(0, 0, 1, 0))
    assert [line for line in mixed.advice() if "30 of 42 rounds did without the drafter" in line]


def test_rounds_that_the_text_serves_are_not_plain() -> None:
    """A lookup's proposal takes the place of a pass: nothing is amiss where it is accepted."""
    mixed = stats(rounds=12)
    for _ in range(30):
        mixed.observe(RoundRecord(6, 5, 6, 0))
    assert mixed.advice() == []


def test_most_nodes_of_a_tree_are_rejected() -> None:
    """Of a tree one path is accepted at most: its share says nothing, that of the chains beside it does."""
    trees = stats(drafted=16, accepted=2)
    trees.observe_trees([16] * 40, [2] * 40)
    assert trees.acceptance_rate < 0.2 and trees.advice() == []
    for _ in range(20):
        trees.observe(RoundRecord(10, 1, 2, 1))
    assert any("10% of the drafted tokens" in line for line in trees.advice())


def test_every_sign_has_a_case() -> None:
    assert {sign.meaning for sign in SIGNS} == {*SEEN, "most rounds are plain"}


def test_too_few_tokens_tell_nothing() -> None:
    (line,) = stats(rounds=3, drafted=10, accepted=0).advice(speedup=0.5)
    assert line.startswith("3 tokens are too few to tell")
    assert len(SpecDecodingStats().advice()) == 1


def test_comparisons() -> None:
    assert stats().advice(speedup=1.1, other_speedup=1.4)[0].startswith("1.10x is less than the 1.40x")
    assert stats().advice(speedup=0.8)[0].startswith("0.80x is slower than plain generate")
    assert stats().advice(speedup=0.8, other_speedup=0.9)[0].startswith("0.80x is slower than plain generate")


def test_the_total_of_several_calls() -> None:
    total = SpecDecodingStats.total([stats(rounds=3), stats(rounds=5, drafted=6, passes=2)])
    assert (total.rounds, total.drafted, total.drafter_passes, total.emitted) == (8, 12 + 30, 3 + 10, 24)
    assert total.draft_seconds == 2.0
    assert SpecDecodingStats.total([]).rounds == 0


def test_advice_leaves_out_what_is_done_already() -> None:
    """Nobody is told to use bfloat16 in bfloat16, a GPU on a GPU, or to tune numbers that were tuned."""
    slow = stats(drafted=2, accepted=0, draft_seconds=0.5)
    words = {"use bfloat16": {"dtype": "bfloat16"}, "a GPU": {"device": "cuda:0"}, "verify less": {"is_tuned": True}}
    for phrase, doing in words.items():
        assert any(phrase in line for line in slow.advice())
        assert not any(phrase in line for line in slow.advice(**doing))
        others = [other for other in words if other != phrase]
        assert all(any(other in line for line in slow.advice(**doing)) for other in others)
    eager = stats(accepted=4, draft_seconds=0.1)
    assert any("nothing is left to change" in line for line in eager.advice(is_tuned=True))


def test_printed_it_is_for_people() -> None:
    said = str(stats(rounds=10))
    assert said == "30 tokens in 10 rounds, 3.00 a round; 20 of 40 drafted tokens accepted (50%); " + (
        "drafting 24%, verifying 73%, else 2%"
    )
    assert "RoundRecord" not in repr(stats())
    assert str(SpecDecodingStats()).endswith("not timed")
