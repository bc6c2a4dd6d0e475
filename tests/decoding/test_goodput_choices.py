"""Goodput chooses what a round proposes: the text stays, copies need no drafter, and what is off stays off."""

import importlib
from typing import Any

import pytest
import torch
from conftest import DRAFTERS, drafter, failfast, plain, prompt, quick_first, target
from goodput_support import COSTS
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
from test_lookup import Circle
from test_trees import check_texts

import hf_failfast
from hf_failfast.decoding import lookup
from hf_failfast.decoding.round_costs import known_of
from hf_failfast.policies.base import RoundCosts

generate_module = importlib.import_module("hf_failfast.generate")  # the attribute of that name is the function

GOODPUT: dict[str, Any] = {"length_policy": "goodput"}
RECORD = {"return_dict_in_generate": True}
COPIED = torch.cat([prompt(12)] * 3, dim=1)  # three times the same text
CHEAP = RoundCosts(((1, 0.05), (32, 0.1)), ((0, 1.0), (31, 1.1)), tree=((8, 1.05), (32, 1.2)))


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows cost next to nothing."""
    monkeypatch.setattr(generate_module, "measured_costs", lambda *_: CHEAP)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("family", quick_first(["llama", "mistral", "gemma2"]))
def test_identical_to_plain(family: str, kind: str) -> None:
    """The text is the target's own, whatever is chosen."""
    for ids in (COPIED, prompt(33)):
        output = failfast(target(family), ids, drafter(kind, family), max_new_tokens=60, **GOODPUT)
        assert torch.equal(output, plain(target(family), ids, max_new_tokens=60))


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str) -> None:
    """No architecture's text changes, alone and in a batch."""
    check_texts(name, GOODPUT)


@pytest.mark.usefixtures("cheap")
def test_trees_are_chosen() -> None:
    """Where rows are cheap, branches are verified; they bring more tokens a round than the chain."""
    rounds = {}
    for nodes in (0, None):
        stats = failfast(
            target("llama"),
            prompt(33),
            ScriptedDrafter(
                plain(target("llama"), prompt(33), max_new_tokens=80), (2, 0, 3), confidence=lambda index: 0.6, rank=1
            ),
            max_new_tokens=80,
            draft_tree=nodes,
            draft_lookup=0,
            **GOODPUT,
            **RECORD,
        ).speculation
        rounds[nodes] = stats.rounds
        assert bool(stats.nodes_verified) == (nodes is None)
    assert rounds[None] < rounds[0]


def test_dear_rows_make_no_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every row costs as much as a plain round, nothing is verified besides sure tokens."""
    dear = RoundCosts(((1, 0.05), (32, 0.1)), ((0, 1.0), (31, 32.0)))
    monkeypatch.setattr(generate_module, "measured_costs", lambda *_: dear)
    output = failfast(
        target("llama"), prompt(33), drafter("canvas_shift", "llama"), max_new_tokens=60, **GOODPUT, **RECORD
    )
    assert output.speculation.nodes_verified == 0


def test_copies_need_no_drafter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the text repeats itself, its own suggestions are verified without a pass of the drafter."""
    monkeypatch.setattr(generate_module, "measured_costs", lambda *_: COSTS["bfloat16"])
    options = {"max_new_tokens": 120, "logits_processor": [Circle()]}
    reference = plain(target("llama"), prompt(24), **options)
    for right in ((0,), (3,)):
        output = failfast(
            target("llama"), prompt(24), ScriptedDrafter(reference, right), **options, **GOODPUT, **RECORD
        )
        stats = output.speculation
        assert torch.equal(output.sequences, reference)
        assert stats.drafter_passes < stats.rounds
        assert stats.lookup_accepted > 60
        assert stats.rounds < 60


@pytest.mark.usefixtures("cheap")
def test_what_is_off_stays_off() -> None:
    """0 and False keep a strategy off, and without goodput nothing is chosen."""
    off = {"draft_tree": 0, "draft_lookup": 0, "draft_reuse": False}
    for options in (GOODPUT | off, {}):
        stats = failfast(
            target("llama"), COPIED, drafter("canvas_shift", "llama"), max_new_tokens=40, **options, **RECORD
        ).speculation
        assert not any(getattr(stats, name) for name in ("nodes_verified", "lookup_accepted", "reused"))


@pytest.mark.usefixtures("cheap")
def test_what_was_learned_is_kept() -> None:
    """The next call of the pair begins with what this one has learned of the drafter's confidence."""
    model = target("qwen2")
    reference = plain(model, prompt(9), max_new_tokens=60)
    proposer = ScriptedDrafter(reference, (0,), confidence=lambda index: 0.9)
    calibration = known_of(model, proposer).calibration
    seen = [calibration.probability(0, 0.9)]
    for _ in range(2):
        failfast(model, prompt(9), proposer, max_new_tokens=50, draft_lookup=0, draft_reuse=False, **GOODPUT)
        assert known_of(model, proposer).calibration is calibration
        seen.append(calibration.probability(0, 0.9))
    assert seen[0] > seen[1] > seen[2]
    assert known_of(target("llama"), proposer).calibration.probability(0, 0.9) == pytest.approx(0.9)


@pytest.mark.usefixtures("cheap")
def test_turns_of_a_conversation() -> None:
    """A conversation's drafter remembers the right text after rounds without its pass."""
    model, session, text = target("llama"), hf_failfast.Conversation(drafter("canvas_shift", "llama")), COPIED
    for turn in range(3):
        expected = plain(model, text, max_new_tokens=18)
        assert torch.equal(failfast(model, text, session, max_new_tokens=18, **GOODPUT), expected)
        text = torch.cat([expected, prompt(7, seed=turn)], dim=1)


# Sampling


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return small_pair(str(tmp_path_factory.mktemp("drafter")))


@pytest.fixture
def suggestive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text suggests some of the likely tokens, which depend on all of it."""
    suggest_likely(monkeypatch)


def fit(pair: Pair, **options: Any) -> float:
    counts = draw(pair, pair.drafter(), 2000, chunk_length=None, **GOODPUT, **WARPING, **options)
    return chi_square(counts, enumerate_distribution(pair, **WARPING))


@pytest.mark.usefixtures("cheap", "suggestive")
@pytest.mark.parametrize("nodes", [0, None])
@pytest.mark.parametrize("verifier", ["sample_and_match", "rejection of hotter drafts"])
def test_samples_follow_the_targets_distribution(pair: Pair, verifier: str, nodes: int | None) -> None:
    """Samples fit the enumerated distribution, with suggestions, trees and rounds without a pass."""
    assert fit(pair, draft_tree=nodes, **VERIFIERS[verifier]) > 1e-3


@pytest.mark.usefixtures("cheap", "suggestive")
def test_the_proof_rejects_a_tail_that_peeks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects a tail that takes the place of drawn tokens which the text does not suggest."""
    suggest = lookup.Lookup.suggest

    def peek(self: Any, view: Any) -> Any:
        suggestion = suggest(self, view._replace(sure=0))
        agrees = view.drafted and view.drafted[0] == suggestion.token_ids[0]
        return None if agrees else suggestion._replace(trust=2.0)

    monkeypatch.setattr(lookup.Lookup, "suggest", peek)
    assert fit(pair, draft_tree=0, **HOTTER) < 1e-6
