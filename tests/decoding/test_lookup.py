"""What the text itself suggests: found, appended, exact whatever it is, and never better by peeking."""

import random
from typing import Any

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, target
from sampling_support import (
    HOTTER,
    VERIFIERS,
    WARPING,
    Pair,
    chi_square,
    draw,
    enumerate_distribution,
    small_pair,
    suggest_likely,
)
from scripted import ScriptedDrafter
from test_architectures import ARCHITECTURES
from test_batch import LENGTHS, alone, batch, padded, reference_of
from test_parity import STATELESS
from test_trees import check_texts, rows_of, script
from transformers import LogitsProcessor

import hf_failfast
from hf_failfast.decoding import lookup
from hf_failfast.decoding.suffixes import SuffixAutomaton

RECORD = {"return_dict_in_generate": True}
OPTIONS: dict[str, Any] = {"draft_lookup": 6, "chunk_length": 4, "max_draft_length": 4}
COPIED = torch.cat([prompt(12), prompt(12), prompt(12)], dim=1)  # three times the same text


# The automaton


def longest_match(text: list[int], tail: list[int], count: int) -> tuple[int, list[int]]:
    """By trying every end of the text and the tail at every place, the first one first."""
    whole = text + tail
    for length in range(len(whole), 0, -1):
        for end in range(length, len(text)):
            if text[end - length : end] == whole[-length:]:
                return length, text[end : end + count]
    return 0, []


def test_the_longest_match_is_found() -> None:
    """For texts over few and many ids, grown in pieces, with and without a tail."""
    for trial in range(400):
        chance = random.Random(trial)
        size = chance.randint(1, 5)
        text = [chance.randrange(size) for _ in range(chance.randint(0, 40))]
        tail = [chance.randrange(size) for _ in range(chance.randint(0, 5))]
        automaton, cut = SuffixAutomaton(), chance.randint(0, len(text))
        automaton.extend(text[:cut])
        automaton.following(tail, 3)  # a query changes nothing
        automaton.extend(text[cut:])
        assert automaton.following(tail, 4) == longest_match(text, tail, 4)


def test_a_token_costs_the_same_in_long_texts() -> None:
    """The states grow with the text and not with its square, for texts that repeat and texts that do not."""
    for text in ([1] * 3000, list(range(3000)), [1, 2] * 1500):
        automaton = SuffixAutomaton()
        automaton.extend(text)
        assert len(automaton._link) <= 2 * len(text)


# Exactness


@pytest.mark.parametrize("kind", ["canvas_shift", "block", "bidirectional"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_identical_to_plain(family: str, kind: str) -> None:
    """A text with a lookup tail is the target's own, with chains and with trees."""
    model = target(family)
    for ids in (COPIED, prompt(33)):
        reference = plain(model, ids, max_new_tokens=40)
        for nodes in (0, 24):
            output = failfast(model, ids, drafter(kind, family), max_new_tokens=40, draft_tree=nodes, **OPTIONS)
            assert torch.equal(output, reference)


class Circle(LogitsProcessor):
    """The text goes round in a circle of seven tokens."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.scatter_add(1, (input_ids[:, -1:] + 1) % 7, torch.full((len(scores), 1), 1000.0))


@pytest.mark.parametrize("nodes", [0, 24])
def test_tails_are_accepted_where_the_text_goes_round(nodes: int) -> None:
    """A text that repeats itself takes fewer rounds with a tail than without one, and the tail is counted."""
    model, ids = target("llama"), prompt(24)
    options = {"max_new_tokens": 60, "logits_processor": [Circle()]}
    reference = plain(model, ids, **options)
    rounds = []
    for count in (0, 6):
        output = failfast(
            model,
            ids,
            script(reference, (4,)),
            **options,
            **OPTIONS | {"draft_lookup": count, "draft_tree": nodes},
            **RECORD,
        )
        assert torch.equal(output.sequences, reference)
        rounds.append(output.speculation.rounds)
    stats = output.speculation
    assert 10 < stats.lookup_accepted == stats.as_dict()["lookup_accepted"] < stats.accepted
    assert rounds[1] < rounds[0]


@pytest.mark.parametrize("nodes", [0, 24])
def test_an_unsure_draft_gives_way(nodes: int) -> None:
    """Where the draft is unsure and the text repeats itself, the text's tokens are accepted from there on."""
    model, ids = target("llama"), prompt(24)
    options = {"max_new_tokens": 60, "logits_processor": [Circle()]}
    reference = plain(model, ids, **options)
    proposer = ScriptedDrafter(reference, (1,), confidence=lambda index: 0.9 if index < 1 else 0.1, rank=1)
    output = failfast(model, ids, proposer, **options, **OPTIONS, draft_tree=nodes, **RECORD)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.lookup_accepted > 20


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str) -> None:
    """Tails change no architecture's text, alone and in a batch."""
    check_texts(name, OPTIONS)


@pytest.mark.parametrize("name", STATELESS)
def test_processors(name: str) -> None:
    """Processors see the true prefix of every token of a tail."""
    model, options = target("qwen3"), {"max_new_tokens": 30} | STATELESS[name]
    reference = plain(model, COPIED, **options)
    for nodes in (0, 24):
        output = failfast(model, COPIED, script(reference), **options, **OPTIONS, draft_tree=nodes)
        assert torch.equal(output, reference)


def test_rows_that_end_early() -> None:
    """Rows of a batch look up their own texts, end on their own and leave it."""
    model, (ids, mask) = target("llama"), batch()
    stop = int(reference_of(model)[0][0, LENGTHS[0] + 7])
    options: dict[str, Any] = {"max_new_tokens": 24, "eos_token_id": stop, "pad_token_id": 0}
    output = failfast(model, ids, rows_of(reference_of(model)), attention_mask=mask, **options, **OPTIONS)
    assert output[:, ids.shape[1] :].tolist() == padded(alone(model, **options))


@pytest.mark.parametrize("kind", ["canvas_shift", "block_shift"])
def test_turns_of_a_conversation(kind: str) -> None:
    """A conversation's drafter remembers the right text after a tail was accepted."""
    model, session, text = target("llama"), hf_failfast.Conversation(drafter(kind, "llama")), COPIED
    for turn in range(3):
        expected = plain(model, text, max_new_tokens=18)
        assert torch.equal(failfast(model, text, session, max_new_tokens=18, **OPTIONS), expected)
        text = torch.cat([expected, prompt(7, seed=turn)], dim=1)


# Sampling


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return small_pair(str(tmp_path_factory.mktemp("drafter")))


@pytest.fixture
def suggestive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text suggests some of the likely tokens, which depend on all of it."""
    suggest_likely(monkeypatch)


def fit(pair: Pair, samples: int = 1500, **options: Any) -> float:
    """p value where drafts are one token long; some are sure and get a tail, some give way to one."""
    shape = {"chunk_length": 1, "max_draft_length": 1, "confidence_threshold": 0.3, "draft_lookup": 2}
    counts = draw(pair, pair.drafter(), samples, **WARPING, **shape | options)
    return chi_square(counts, enumerate_distribution(pair, **WARPING))


@pytest.mark.parametrize("nodes", [0, 12])
@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.usefixtures("suggestive")
def test_samples_follow_the_targets_distribution(pair: Pair, verifier: str, nodes: int) -> None:
    """Samples with tails fit the enumerated distribution, in chains and as branches."""
    assert fit(pair, draft_tree=nodes, **VERIFIERS[verifier]) > 1e-3


@pytest.mark.usefixtures("suggestive")
def test_the_proof_rejects_a_tail_that_peeks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects a tail that takes the place of drawn tokens which the text does not suggest."""
    suggest = lookup.Lookup.suggest

    def peek(self: Any, view: Any) -> Any:
        suggestion = suggest(self, view._replace(sure=0))
        agrees = view.drafted and view.drafted[0] == suggestion.token_ids[0]
        return None if agrees else suggestion._replace(trust=2.0)

    monkeypatch.setattr(lookup.Lookup, "suggest", peek)
    assert fit(pair, **HOTTER) < 1e-6


# Refusals


@pytest.mark.parametrize("value", [-1, 65, 1.5, True])
def test_out_of_range(value: Any) -> None:
    """Values that are no integer from 0 to 64 are refused by name."""
    with pytest.raises(ValueError, match="`draft_lookup` must be an integer from 0 to 64"):
        failfast(target("llama"), prompt(9), drafter("canvas"), draft_lookup=value)


def test_transformers_own_loop() -> None:
    """Refuses a tail in transformers' own loop."""
    with pytest.raises(ValueError, match="`draft_lookup`=4 is not possible with `assisted_generate`"):
        hf_failfast.assisted_generate(
            target("llama"), prompt(9), assistant_model=drafter("canvas", "llama"), draft_lookup=4
        )
