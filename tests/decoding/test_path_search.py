"""The best path through a draft's candidates: found, accepted where it is right, exact whatever it is."""

import itertools
import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import DRAFTERS, drafter, failfast, plain, prompt, target
from sampling_support import WARPING, Pair, chi_square, draw, enumerate_distribution, small_pair
from scripted import ScriptedDrafter
from test_architectures import ARCHITECTURES
from test_batch import LENGTHS, alone, batch, padded, reference_of
from test_lookup import Circle
from test_parity import STATELESS
from test_trees import check_texts, rows_of, script

import hf_failfast
from hf_failfast.decoding import path_search, token_choice
from hf_failfast.decoding.lattice import Column
from hf_failfast.decoding.path_search import NGrams, PathSearch
from hf_failfast.policies import POLICIES, DiffuSpecLength

RECORD = {"return_dict_in_generate": True}
OPTIONS: dict[str, Any] = {"length_policy": "diffuspec", "chunk_length": 3, "max_draft_length": 6}


# The model and the search


def counted(text: list[int], context: list[int]) -> Counter[int]:
    """What followed a context in a text, by trying every place."""
    size = len(context)
    return Counter(text[end] for end in range(size, len(text)) if text[end - size : end] == context)


def by_hand(text: list[int], before: list[int], token: int, prior: float) -> float:
    """Witten and Bell's interpolation of the prior, the bigrams and the trigrams."""
    for size in (1, 2):
        found = counted(text, before[-size:]) if len(before) >= size else Counter()
        if found:
            prior = (found[token] + len(found) * prior) / (sum(found.values()) + len(found))
    return prior


def test_ngrams_by_hand() -> None:
    """For texts over few and many ids, read in pieces; probabilities add up to one."""
    for trial in range(60):
        chance = random.Random(trial)
        size = chance.randint(1, 6)
        text = [chance.randrange(size) for _ in range(chance.randint(0, 30))]
        before = [chance.randrange(size) for _ in range(chance.randint(0, 3))]
        grams = NGrams()
        grams.extend(text[: len(text) // 2])
        grams.extend(text)
        found = [grams.probability(before, token, 1 / size) for token in range(size)]
        assert found == pytest.approx([by_hand(text, before, token, 1 / size) for token in range(size)])
        assert sum(found) == pytest.approx(1)


def column(chance: random.Random, length: int, size: int) -> Column:
    """Three candidates of twelve at every position, the likeliest first."""
    ids = [chance.sample(range(size), 3) for _ in range(length)]
    probs = [sorted((chance.uniform(0.05, 0.3) for _ in range(3)), reverse=True) for _ in range(length)]
    return Column(ids, [row[0] for row in probs], [row[1:] for row in probs])


def test_the_best_path_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for every path, the search finds the one of the best score, whatever text came before."""
    monkeypatch.setattr(path_search, "WIDTH", 10**6)
    for trial in range(20):
        chance = random.Random(trial)
        text = [chance.randrange(12) for _ in range(30)]
        lattice, grams = column(chance, 4, 12), NGrams()
        grams.extend(text)

        def score(path: tuple[int, ...], lattice: Column = lattice, text: list[int] = text) -> float:
            total, written = 0.0, list(text)
            for place, token in enumerate(path):
                probs = [lattice.confidence[place], *lattice.probs[place]]
                own = probs[lattice.token_ids[place].index(token)]
                total += 0.5 * math.log(own) + 0.5 * math.log(by_hand(text, written[-2:], token, own))
                written.append(token)
            return total

        best = max(itertools.product(*lattice.token_ids), key=score)
        found = PathSearch(None)._path(lattice, 4, text[-2:], grams)
        assert score(tuple(token for token, _ in found)) == pytest.approx(score(best))


def test_candidates_hold_the_mass() -> None:
    """The likeliest tokens up to a mass of 0.8, the draft's own always, an end of sequence too, none twice."""
    wide = Column([[5, 6, 7, 8]], [0.5], [[0.2, 0.15, 0.05]])
    assert path_search._candidates(wide, 0, ()) == [(5, 0.5), (6, 0.2), (7, 0.15)]
    assert path_search._candidates(wide, 0, {8}) == [(5, 0.5), (6, 0.2), (7, 0.15), (8, 0.05)]
    sure = Column([[5, 6]], [0.9], [[0.05]])
    assert path_search._candidates(sure, 0, ()) == [(5, 0.9)]


def test_a_text_that_says_nothing_changes_nothing() -> None:
    """Where no n-gram was seen, the path is the draft; a path ends at its first end of sequence."""
    lattice = column(random.Random(0), 5, 12)
    own = [ids[0] for ids in lattice.token_ids]
    assert [token for token, _ in PathSearch(None)._path(lattice, 5, [], NGrams())] == own
    ended = PathSearch(torch.tensor([own[2]]))._path(lattice, 5, [], NGrams())
    assert [token for token, _ in ended] == own[: own.index(own[2]) + 1]


# Exactness


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_identical_to_plain(family: str, kind: str) -> None:
    """Paths give the target's own text, with each kind of drafter, with tails and reuse beside them."""
    model = target(family)
    ids = torch.cat([prompt(11), prompt(11)], dim=1)
    reference = plain(model, ids, max_new_tokens=40)
    for more in ({}, {"draft_lookup": 4, "draft_reuse": True}, {"draft_tree": 16}):
        output = failfast(model, ids, drafter(kind, family), max_new_tokens=40, **OPTIONS, **more)
        assert torch.equal(output, reference)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str) -> None:
    """Paths change no architecture's text, alone and in a batch."""
    check_texts(name, OPTIONS)


@pytest.mark.parametrize("name", STATELESS)
def test_processors(name: str) -> None:
    """Processors see the true prefix of every token of a path."""
    model, ids = target("qwen3"), torch.cat([prompt(9)] * 3, dim=1)
    options = {"max_new_tokens": 30} | STATELESS[name]
    reference = plain(model, ids, **options)
    assert torch.equal(failfast(model, ids, script(reference), **options, **OPTIONS), reference)


@pytest.mark.parametrize("lookup", [0, 5])
def test_a_coherent_path_is_accepted(lookup: int) -> None:
    """Where the draft is wrong and its alternative continues the text as before, the alternative is proposed: fewer
    rounds than with the draft; the drafter learns how much of its own draft stayed."""
    model, ids = target("llama"), prompt(24)
    options: dict[str, Any] = {"max_new_tokens": 60, "logits_processor": [Circle()]}
    reference = plain(model, ids, **options)
    rounds = []
    for drafting in ({}, {"length_policy": "diffuspec"}):
        proposer = ScriptedDrafter(reference, (1, 0, 3), confidence=lambda index: 0.5, rank=0)
        drafting |= {"chunk_length": 6, "max_draft_length": 6, "draft_lookup": lookup} | RECORD
        output = failfast(model, ids, proposer, **options, **drafting)
        assert torch.equal(output.sequences, reference)
        rounds.append(output.speculation.rounds)
    accepted = [count for session in proposer.sessions for count in session.accepted]
    assert set(accepted) <= {0, 1, 3, 6}
    assert sum(accepted) < output.speculation.accepted
    assert rounds[1] < rounds[0] if lookup else rounds[1] < 0.6 * rounds[0]


def test_lengths_follow_what_was_accepted_of_paths() -> None:
    """The policy is told how much of the path was accepted, not only of the drafter's own draft."""
    model, ids, told = target("llama"), prompt(24), []

    class Told(DiffuSpecLength):
        def observe(self, num_accepted: Any) -> None:
            told.extend(num_accepted)
            super().observe(num_accepted)

    options: dict[str, Any] = {"max_new_tokens": 50, "logits_processor": [Circle()]}
    reference = plain(model, ids, **options)
    proposer = ScriptedDrafter(reference, (1,), confidence=lambda index: 0.5, rank=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(POLICIES, "diffuspec", Told)
        output = failfast(model, ids, proposer, **options, **OPTIONS, **RECORD)
    assert torch.equal(output.sequences, reference)
    assert told == [record.accepted for record in output.speculation.records]
    assert max(told) > 3


def test_rows_that_end_early() -> None:
    """Rows of a batch search their own texts, end on their own and leave it."""
    model, (ids, mask) = target("llama"), batch()
    stop = int(reference_of(model)[0][0, LENGTHS[0] + 7])
    options: dict[str, Any] = {"max_new_tokens": 24, "eos_token_id": stop, "pad_token_id": 0}
    output = failfast(model, ids, rows_of(reference_of(model)), attention_mask=mask, **options, **OPTIONS)
    assert output[:, ids.shape[1] :].tolist() == padded(alone(model, **options))


@pytest.mark.parametrize("kind", ["canvas_shift", "block_shift", "bidirectional"])
def test_turns_of_a_conversation(kind: str) -> None:
    """A conversation's drafter remembers the right text after a path was accepted."""
    model, session = target("llama"), hf_failfast.Conversation(drafter(kind, "llama"))
    text = torch.cat([prompt(12)] * 3, dim=1)
    for turn in range(3):
        expected = plain(model, text, max_new_tokens=18)
        assert torch.equal(failfast(model, text, session, max_new_tokens=18, **OPTIONS), expected)
        text = torch.cat([expected, prompt(7, seed=turn)], dim=1)


def test_a_drafter_without_alternatives() -> None:
    """Its lattice is one token wide: the path is its draft."""
    model, ids = target("llama"), prompt(15)
    reference = plain(model, ids, max_new_tokens=30)
    proposer = ScriptedDrafter(reference, (3, 0))
    assert torch.equal(failfast(model, ids, proposer, max_new_tokens=30, **OPTIONS), reference)


def test_a_broken_drafter_is_given_up() -> None:
    """Confidences that are not numbers end the drafting, as without a search."""
    model, ids = target("llama"), prompt(15)
    reference = plain(model, ids, max_new_tokens=30)
    proposer = ScriptedDrafter(reference, (3, 0), confidence=lambda index: math.nan, rank=1)
    output = failfast(model, ids, proposer, max_new_tokens=30, **OPTIONS, **RECORD)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.drafter_errors == 1


# Sampling


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return small_pair(str(tmp_path_factory.mktemp("drafter")))


@pytest.fixture
def opinionated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text makes some of the candidates much likelier than the others, which ones depends on its end."""

    def probability(self: Any, before: Any, token_id: int, prior: float) -> float:
        return 0.9 if (3 * sum(before) + 5 * token_id) % 7 < 2 else 1e-4

    monkeypatch.setattr(NGrams, "probability", probability)


def fit(pair: Pair, samples: int = 1500, **options: Any) -> float:
    """p value where drafts are up to two tokens long."""
    drafting = {"length_policy": "diffuspec", "chunk_length": 1, "max_draft_length": 2}
    counts = draw(pair, pair.drafter(), samples, **WARPING, **drafting | options)
    return chi_square(counts, enumerate_distribution(pair, **WARPING))


@pytest.mark.parametrize("verifier", ["sample_and_match", "rejection"])
@pytest.mark.usefixtures("opinionated")
def test_samples_follow_the_targets_distribution(pair: Pair, verifier: str) -> None:
    """Samples with searched paths fit the enumerated distribution: a path is verified as certain."""
    assert fit(pair, verifier=verifier) > 1e-3


@pytest.mark.usefixtures("opinionated")
def test_the_proof_rejects_a_path_that_counts_as_drawn(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects a search among drawn tokens whose choice is verified by the distributions of the draws."""
    search = PathSearch.search

    def counted_as_drawn(self: Any, draft: Any, views: Any) -> Any:
        found = search(self, draft, views)
        return replace(found, probs=None if draft.probs is None else draft.probs[:, : len(found)])

    class Drawing:
        """The config as it would be if no path were searched."""

        searches_paths, draws_drafts, draft_temperature = False, True, 2.5

    warp = token_choice.draft_warp
    monkeypatch.setattr(
        "hf_failfast.decoding.loop.draft_warp",
        lambda config, *others: warp(Drawing(), *others),  # type: ignore[arg-type]
    )
    monkeypatch.setattr(PathSearch, "takes", lambda self, draft: draft.alternatives is not None and len(draft) > 0)
    monkeypatch.setattr(PathSearch, "search", counted_as_drawn)
    assert fit(pair, verifier="rejection") < 1e-6
