"""The package's promise: the tokens equal plain `generate`'s, whatever the drafter does."""

from typing import Any

import pytest
import torch
from conftest import DRAFTERS, LOOPS, TARGETS, drafter, failfast, plain, prompt, target
from scripted import ScriptedDrafter, scripted
from transformers import LogitsProcessor
from transformers.generation import GenerateDecoderOnlyOutput

from hf_failfast.compatibility import CACHE

ALL_LENGTHS = list(range(11))  # accept lengths 0 to 10


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("family", TARGETS)
def test_every_drafter_on_every_target(family: str, kind: str) -> None:
    """Every kind of drafter gives every target's own greedy text in both loops."""
    model, input_ids = target(family), prompt(33)
    reference = plain(model, input_ids, max_new_tokens=16)
    for generate in LOOPS.values():
        output = generate(model, input_ids, drafter(kind, family), max_new_tokens=16, return_dict_in_generate=True)
        assert torch.equal(output.sequences, reference)
        assert output.speculation.drafted > 0
        if kind == "canvas_shift":  # its first row is the target's own, so drafts are accepted and rolled back
            assert 0 < output.speculation.accepted < output.speculation.drafted


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 200])
@pytest.mark.parametrize("family", TARGETS)
def test_prompt_and_text_lengths(family: str, length: int) -> None:
    """Prompts of 1 to 200 tokens and texts of 1 to 40 give the target's own tokens."""
    model, input_ids = target(family), prompt(length)
    reference = plain(model, input_ids, max_new_tokens=60)
    for generate in LOOPS.values():
        for new_tokens in (1, 2, 3, 40):
            script = ScriptedDrafter(reference, [3, 0, 10, 1, 10, 7])
            output = generate(model, input_ids, script, max_new_tokens=new_tokens)
            assert torch.equal(output, reference[:, : length + new_tokens])
    for kind in ("canvas_shift", "block_shift"):
        output = failfast(model, input_ids, drafter(kind, family), max_new_tokens=12)
        assert torch.equal(output, reference[:, : length + 12])


@pytest.mark.parametrize("family", TARGETS)
def test_prompt_of_2000_tokens(family: str) -> None:
    """A prompt of 2000 tokens gives the target's own tokens, sliding windows included."""
    model, input_ids = target(family), prompt(2000)
    reference = plain(model, input_ids, max_new_tokens=8)
    for generate in LOOPS.values():
        script = ScriptedDrafter(reference, [2, 0, 3])
        assert torch.equal(generate(model, input_ids, script, max_new_tokens=8), reference)
    assert torch.equal(failfast(model, input_ids, drafter("canvas_shift", family), max_new_tokens=8), reference)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("length", ALL_LENGTHS)
def test_every_accept_length(length: int, loop: str) -> None:
    """Every number of accepted tokens, none and all included, leaves the target's own text."""
    model, input_ids = target("mistral"), prompt(20)
    script = scripted(model, input_ids, accept_lengths=[length])
    output = LOOPS[loop](
        model, input_ids, script, max_new_tokens=45, return_dict_in_generate=True, max_draft_length=10
    )
    assert torch.equal(output.sequences, script.reference[:, : 20 + 45])
    records = output.speculation.records
    assert {record.accepted for record in records[:-1]} == {length}


@pytest.mark.parametrize("kind", ["scripted", "canvas_shift", "block_shift"])
@pytest.mark.parametrize("family", TARGETS)
def test_left_padded_prompt(family: str, kind: str) -> None:
    """Left padding is not attended to and does not shift positions."""
    model = target(family)
    input_ids = torch.cat([torch.zeros(1, 5, dtype=torch.long), prompt(21)], dim=1)
    mask = torch.ones_like(input_ids)
    mask[:, :5] = 0
    options = {"attention_mask": mask, "max_new_tokens": 20, "repetition_penalty": 1.3}
    reference = plain(model, input_ids, **options)
    if kind == "scripted":
        proposer: Any = ScriptedDrafter(reference[:, 5:], [4, 0, 10])
    else:
        proposer = drafter(kind, family)
    assert torch.equal(failfast(model, input_ids, proposer, **options), reference)


class Alternate(LogitsProcessor):
    """A user's processor: odd tokens follow even ones, and the other way round."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        is_same = torch.arange(scores.shape[1]) % 2 == input_ids[:, -1:] % 2
        return scores.masked_fill(is_same, -torch.inf)


class BanByCall(LogitsProcessor):
    """A stateful processor: the number of calls decides which tokens it bans. Remembers the lengths it was shown."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls.append(input_ids.shape[1])
        scores[:, len(self.calls) % 2 :: 3] = -torch.inf  # in place, as some processors do
        return scores


STATELESS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "suppress_tokens": {"suppress_tokens": list(range(0, 120, 3))},
    "bad_words_ids": {"bad_words_ids": [[i] for i in range(0, 120, 4)] + [[i, i + 2] for i in range(1, 100)]},
    "user": {"logits_processor": [Alternate()]},
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", STATELESS)
def test_logits_processors(name: str, loop: str) -> None:
    """Processors see the true prefix of every position, inside of drafts too."""
    model, input_ids = target("qwen3"), prompt(15)
    options = {"max_new_tokens": 30} | STATELESS[name]
    reference = plain(model, input_ids, **options)
    assert not torch.equal(reference, plain(model, input_ids, max_new_tokens=30)), "the processor changes nothing"
    script = ScriptedDrafter(reference, [2, 10, 0, 5])
    assert torch.equal(LOOPS[loop](model, input_ids, script, **options), reference)


@pytest.mark.parametrize("lengths", [None, [0], [2, 10, 0, 5]])
def test_stateful_processor(lengths: list[int] | None) -> None:
    """A stateful processor is called exactly once per emitted token, as in plain `generate`."""
    model, input_ids = target("qwen3"), prompt(15)
    expected, actual = BanByCall(), BanByCall()
    reference = plain(model, input_ids, max_new_tokens=30, logits_processor=[expected])
    script = ScriptedDrafter(reference, lengths)
    output = failfast(model, input_ids, script, max_new_tokens=30, logits_processor=[actual])
    assert torch.equal(output, reference)
    assert actual.calls == expected.calls == list(range(15, 45))


@pytest.mark.parametrize("processors", [{}, {"repetition_penalty": 1.4}])
@pytest.mark.parametrize("loop", LOOPS)
def test_scores_and_logits(loop: str, processors: dict[str, float]) -> None:
    """Scores and raw logits are float32, one per emitted token, and equal plain `generate`'s."""
    model, input_ids = target("gemma2"), prompt(15)
    options = {"max_new_tokens": 30, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    reference = plain(model, input_ids, **options, **processors)
    script = ScriptedDrafter(reference.sequences, [4, 10, 0])
    output = LOOPS[loop](model, input_ids, script, **options, **processors)
    assert torch.equal(output.sequences, reference.sequences)
    for name in ("scores", "logits"):
        assert len(output[name]) == 30
        assert all(step.dtype == torch.float32 for step in output[name])
        torch.testing.assert_close(torch.cat(output[name]), torch.cat(reference[name]), atol=1e-4, rtol=1e-4)


class BanInPlace(LogitsProcessor):
    """Overwrites the scores it is given, as some processors do."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, ::3] = -torch.inf
        return scores


def test_raw_logits_stay_raw() -> None:
    """A processor that works in place leaves the raw logits unchanged."""
    model, input_ids = target("gemma2"), prompt(15)
    options = {"max_new_tokens": 20, "return_dict_in_generate": True, "output_logits": True}
    reference = plain(model, input_ids, suppress_tokens=list(range(0, 120, 3)), **options)
    script = ScriptedDrafter(reference.sequences, [4, 10, 0])
    output = failfast(model, input_ids, script, logits_processor=[BanInPlace()], **options)
    torch.testing.assert_close(torch.cat(output.logits), torch.cat(reference.logits), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", TARGETS)
def test_the_returned_cache_continues_plain_generation(family: str) -> None:
    """Plain `generate` continues correctly from the returned cache, which holds no rejected token."""
    model, input_ids = target(family), prompt(20)
    script = scripted(model, input_ids, accept_lengths=[4, 10, 0])
    for new_tokens in (1, 13):
        output = failfast(model, input_ids, script, max_new_tokens=new_tokens, return_dict_in_generate=True)
        assert output[CACHE].get_seq_length() == 20 + new_tokens - 1
        continued = plain(model, output.sequences, **{CACHE: output[CACHE]}, max_new_tokens=30)
        assert torch.equal(continued, script.reference[:, : 20 + new_tokens + 30])


def test_return_types() -> None:
    """Returns a tensor by default, and transformers' output object where asked for."""
    model, input_ids = target("llama"), prompt(5)
    script = scripted(model, input_ids)
    assert type(failfast(model, input_ids, script, max_new_tokens=5)) is torch.Tensor
    output = failfast(model, input_ids, script, max_new_tokens=5, return_dict_in_generate=True)
    assert type(output) is GenerateDecoderOnlyOutput
    assert output.scores is None
    assert output.logits is None
