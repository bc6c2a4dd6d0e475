"""A trace tells what happened, and changes nothing."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import drafter, plain, prompt, target
from scripted import ScriptedDrafter

from hf_failfast import FailFastConfig
from hf_failfast.measure.tracing import Trace, TracedRound, trace

CONFIG = FailFastConfig(confidence_threshold=0.5, chunk_length=3, max_draft_length=9)


def scripted(reference: torch.Tensor, **options: object) -> ScriptedDrafter:
    return ScriptedDrafter(reference, config=CONFIG, **options)


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    return plain(target("llama"), prompt(7), max_new_tokens=24)


def traced(text: torch.Tensor, **options: object) -> Trace:
    return trace(target("llama"), prompt(7), scripted(text, **options), max_new_tokens=24, do_sample=False)


def test_rounds_put_together_are_the_text(text: torch.Tensor) -> None:
    result = traced(text, accept_lengths=[2, 5, 0])
    assert result.prompt_ids + sum((r.emitted_ids for r in result.rounds), []) == text[0].tolist()
    assert [r.accepted for r in result.rounds] == [record.accepted for record in result.stats.records]
    assert [len(r.draft_ids) for r in result.rounds] == [record.drafted for record in result.stats.records]
    assert all(r.draft_ids[: r.accepted] == r.emitted_ids[: r.accepted] for r in result.rounds)
    assert all(r.draft_seconds > 0 and r.verify_seconds > 0 for r in result.rounds)
    json.dumps(result.as_dict(), allow_nan=False)


def test_probabilities_are_the_target_s(text: torch.Tensor) -> None:
    logits = target("llama")(text[:, :-1]).logits[0, 6:].float().softmax(-1)
    expected = logits.gather(1, text[0, 7:, None])[:, 0].tolist()
    found = sum((r.probability for r in traced(text, accept_lengths=[2]).rounds), [])
    assert found == pytest.approx(expected, abs=1e-4)


def test_confidences_are_the_drafter_s(text: torch.Tensor) -> None:
    result = traced(text, confidence=lambda index: 0.9 - index / 100)
    assert result.rounds[0].confidence == pytest.approx([0.9 - index / 100 for index in range(9)])


def test_judged_tokens_end_with_the_first_rejected_one(text: torch.Tensor) -> None:
    first = traced(text, accept_lengths=[2]).rounds[0]
    assert (len(first.draft_ids), first.accepted) == (9, 2)
    assert [verdict for _, verdict in first.judged] == [True, True, False]


def test_a_draft_cut_by_the_end_of_the_text_has_no_rejected_token() -> None:
    """Where the text ended after the second token, the third has no verdict."""
    cut = TracedRound([1, 2, 3], [0.9, 0.8, 0.7], 2, [1, 2], [0.5, 0.5], 1, 0.1, 0.1)
    assert cut.judged == [(0.9, True), (0.8, True)]
    assert not cut.has_bonus


def test_sampled_drafts_are_traced_as_they_are_without() -> None:
    """Traced and untraced sampling write the same: the recorder hands the request's temperature on."""
    model, ids, sampled = target("qwen2"), prompt(9), drafter("canvas_shift")
    arguments = {"max_new_tokens": 20, "do_sample": True, "verifier": "rejection"}
    torch.manual_seed(3)
    alone = model.generate(ids, assistant_model=sampled, custom_generate="hf_failfast", **arguments)
    torch.manual_seed(3)
    result = trace(model, ids, sampled, **arguments)
    assert result.prompt_ids + sum((r.emitted_ids for r in result.rounds), []) == alone[0].tolist()


STRATEGIES: dict[str, dict[str, Any]] = {
    "tail": {"draft_lookup": 6},
    "tree": {"draft_tree": 12},
    "tree and tail": {"draft_tree": 12, "draft_lookup": 6},
    "reuse": {"draft_reuse": True},
    "self-selection": {"self_selection": 3},
    "diffuspec": {"length_policy": "diffuspec"},
    "goodput": {"length_policy": "goodput"},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_a_strategy_proposes_is_not_the_drafter_s(name: str) -> None:
    """Rounds hold the drafter's own drafts, whatever else was verified, and nothing that a policy drafts to measure;
    the accepted tokens are counted for all, and for the drafter alone."""
    model, ids = target("qwen2"), prompt(9).repeat(1, 4)
    result = trace(model, ids, drafter("canvas_shift"), max_new_tokens=40, do_sample=False, **STRATEGIES[name])
    text = plain(model, ids, max_new_tokens=40)[0].tolist()
    assert result.prompt_ids + sum((r.emitted_ids for r in result.rounds), []) == text
    assert [r.accepted for r in result.rounds] == [record.accepted for record in result.stats.records]
    for each in result.rounds:
        own = each.accepted_own
        assert each.draft_ids[:own] == each.emitted_ids[:own] and own <= each.accepted
        assert [verdict for _, verdict in each.judged[:own]] == [True] * own
        assert not any(verdict for _, verdict in each.judged[own:])


def test_the_text_s_own_suggestions_count(text: torch.Tensor) -> None:
    """A text that repeats itself is continued by a tail that the drafter knows nothing of."""
    ids = text[:, 7:31].repeat(1, 3)[:, :-5]
    model = target("llama")
    result = trace(model, ids, drafter("canvas_shift"), max_new_tokens=24, do_sample=False, draft_lookup=8)
    suggested = sum(each.accepted - each.accepted_own for each in result.rounds)
    assert suggested >= result.stats.lookup_accepted


def test_drafts_made_ahead_are_refused_by_name() -> None:
    """Whether the option comes by name, in a config, or is the drafter's own."""
    model, own = target("qwen2"), drafter("canvas_shift")
    config = replace(own.config, overlap=True)
    asked: list[dict[str, Any]] = [{"overlap": True}, {"failfast_config": config}]
    for options in asked:
        with pytest.raises(ValueError, match="`overlap`=True cannot be traced"):
            trace(model, prompt(9), own, max_new_tokens=4, **options)


def test_a_drafter_that_fails_drafts_nothing_more(text: torch.Tensor) -> None:
    """Its rounds are traced up to its error, and those after it are plain ones."""

    class Failing(ScriptedDrafter):
        def start(self, request: Any) -> Any:
            session = super().start(request)
            draft, calls = session.draft, []

            def fails_later(*arguments: Any) -> Any:
                calls.append(1)
                if len(calls) > 2:
                    raise RuntimeError("gone")
                return draft(*arguments)

            session.draft = fails_later
            return session

    failing = Failing(text, config=CONFIG, accept_lengths=[2])
    result = trace(target("llama"), prompt(7), failing, max_new_tokens=24, do_sample=False)
    assert result.prompt_ids + sum((r.emitted_ids for r in result.rounds), []) == text[0].tolist()
    assert [bool(r.draft_ids) for r in result.rounds] == [True, True] + [False] * (len(result.rounds) - 2)


def test_a_real_drafter_is_not_disturbed() -> None:
    model = target("qwen2")
    expected = plain(model, prompt(9), max_new_tokens=20)
    result = trace(model, prompt(9), drafter("canvas_shift"), max_new_tokens=20, do_sample=False)
    assert result.prompt_ids + sum((r.emitted_ids for r in result.rounds), []) == expected[0].tolist()
    assert result.stats.accepted > 0
