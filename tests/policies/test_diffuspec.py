"""DiffuSpec's draft lengths: by hand, exact, and refused where a drafter decides on lengths itself."""

from typing import Any

import pytest
import torch
from conftest import LOOPS, character_tokenizer, drafter, failfast, plain, prompt, target
from scripted import scripted

import hf_failfast
from hf_failfast.policies import POLICIES, DiffuSpecLength

EOS = torch.tensor([7])


def play(policy: DiffuSpecLength, end: int | None, accepted: int) -> int:
    """A round whose draft has its end of sequence at a place, or none. Returns the length of the next draft."""
    assert policy.start_draft(1, 10, 99)
    ids = torch.zeros(1, policy.chunk_length, dtype=torch.long)
    if end is not None:
        ids[0, end] = 7
    decision = policy.decide(ids, torch.ones(ids.shape), EOS, can_extend=True)
    assert decision == ([policy.chunk_length if end is None else end + 1], [False], 1)
    policy.observe([accepted])
    return policy.chunk_length


def test_lengths_by_hand() -> None:
    """The averages of drafted and accepted tokens with memory 0.5, the growth, and both bounds."""
    policy = DiffuSpecLength(10, 30)
    policy.start(1, 5)
    assert policy.chunk_length == 30
    assert play(policy, None, 0) == 30  # 30 drafted, 0 accepted
    assert play(policy, 14, 2) == 22  # 22, 1
    assert play(policy, 5, 5) == 13  # 13.5, 3
    assert play(policy, 4, 4) == 10  # 8.75, 3.5: the shortest
    assert play(policy, 0, 9) == 14  # 4.375, 6.25: 4 + 10
    assert play(policy, None, 14) == 19  # 9.1875, 10.125: 9 + 10
    for _ in range(9):
        play(policy, None, policy.chunk_length)
    assert policy.chunk_length == 30
    policy.start(1, 5)
    assert policy.chunk_length == 30


def test_a_batch_has_the_length_of_its_means() -> None:
    """Drafts of two sequences, made in one chunk or one after the other, count alike."""
    together, in_turn = DiffuSpecLength(2, 12), DiffuSpecLength(2, 12)
    ids = torch.zeros(2, 12, dtype=torch.long)
    ids[1, 4] = 7
    together.decide(ids, torch.ones(2, 12), EOS, can_extend=True)
    for row in ids:
        in_turn.decide(row[None], torch.ones(1, 12), EOS, can_extend=True)
    for policy in (together, in_turn):
        policy.observe([3, 0])
        assert policy.chunk_length == 8
        policy.observe([0, 0])  # a round without drafts says nothing
        assert policy.chunk_length == 8


def test_without_an_end_of_sequence_nothing_is_read() -> None:
    """Where no token ends a text, the whole draft counts, without a transfer to the host."""
    policy = DiffuSpecLength(4, 9)
    decision = policy.decide(torch.zeros(2, 9, dtype=torch.long), torch.ones(2, 9), None, can_extend=True)
    assert decision == ([9, 9], [False, False], 0)


@pytest.mark.parametrize("name", LOOPS)
def test_drafts_have_these_lengths(name: str) -> None:
    """Both loops draft by the policy, beginning with the longest, and give the target's own text."""
    model, ids = target("llama"), prompt(15)
    options: dict[str, Any] = {"length_policy": "diffuspec", "chunk_length": 3, "max_draft_length": 8}
    proposer = scripted(model, ids, accept_lengths=[8, 2])
    output = LOOPS[name](model, ids, proposer, max_new_tokens=40, return_dict_in_generate=True, **options)
    assert torch.equal(output.sequences, plain(model, ids, max_new_tokens=40))
    assert output.speculation.records[0].drafted == 8
    assert {record.drafted for record in output.speculation.records[:-1]} <= set(range(3, 9))


def test_it_is_named() -> None:
    """The config and the table of policies know it."""
    assert POLICIES["diffuspec"] is DiffuSpecLength
    assert hf_failfast.FailFastConfig(length_policy="diffuspec").length_policy == "diffuspec"


def test_refusals() -> None:
    """The threshold has no use, drafters that decide on lengths themselves have no policy, and no drafts are drawn."""
    model = target("qwen2")
    with pytest.raises(ValueError, match=r"`length_policy='diffuspec'` .* no use for \['confidence_threshold'\]"):
        failfast(model, prompt(9), drafter("canvas"), length_policy="diffuspec", confidence_threshold=0.4)
    two = {"tokenizer": character_tokenizer(), "assistant_tokenizer": character_tokenizer(1)}
    with pytest.raises(ValueError, match="`length_policy='diffuspec'` needs .* neither `assistant_tokenizer`"):
        failfast(model, prompt(9), drafter("canvas"), length_policy="diffuspec", **two)
    with pytest.raises(ValueError, match="`draft_temperature`=0.5 needs drafts that are samples, but .*'diffuspec'"):
        failfast(
            model,
            prompt(9),
            drafter("canvas"),
            length_policy="diffuspec",
            verifier="rejection",
            draft_temperature=0.5,
        )
