"""Texts end at the same token as in plain `generate`, wherever in an accepted draft it is."""

from typing import Any

import pytest
import torch
from conftest import LOOPS, drafter, failfast, plain, prompt, target, tiny_model
from scripted import ScriptedDrafter, scripted
from transformers import PreTrainedTokenizerFast, StoppingCriteria

UNUSED_ID = 119  # occurs in no text of `test_end_of_sequence_inside_an_accepted_block`


def first_new(reference: torch.Tensor, start: int, earliest: int) -> int:
    """First index >= `earliest` in the text after `start` whose token is new there."""
    continuation = reference[0, start:].tolist()
    return next(i for i in range(earliest, len(continuation)) if continuation[i] not in continuation[:i])


@pytest.mark.parametrize(
    ("loop", "sees_eos"),
    [("failfast", True), ("failfast", False), ("assisted", True)],  # transformers 5.17 leaves the cut to the drafter
)
def test_end_of_sequence_inside_an_accepted_block(loop: str, sees_eos: bool) -> None:
    """The text ends at the end of sequence, without the accepted tokens after it."""
    model, input_ids = target("llama"), prompt(9)
    reference = plain(model, input_ids, max_new_tokens=60)
    for earliest in range(12):
        end = first_new(reference, 9, earliest)
        for eos in (int(reference[0, 9 + end]), [UNUSED_ID, int(reference[0, 9 + end])]):
            script = ScriptedDrafter(reference, sees_eos=sees_eos)
            options = {"max_new_tokens": 40, "eos_token_id": eos, "pad_token_id": 0}
            expected = reference[:, : 9 + end + 1]
            assert torch.equal(plain(model, input_ids, **options), expected)
            assert torch.equal(LOOPS[loop](model, input_ids, script, **options), expected)


@pytest.mark.parametrize("name", ["min_new_tokens", "min_length"])
@pytest.mark.parametrize("loop", LOOPS)
def test_minimal_length(name: str, loop: str) -> None:
    """Minimal lengths hold back the end of sequence, as in plain `generate`."""
    model, input_ids = target("qwen3"), prompt(15)
    reference = plain(model, input_ids, max_new_tokens=60)
    eos = int(reference[0, 15 + first_new(reference, 15, 4)])
    options = {"max_new_tokens": 40, "eos_token_id": eos, "pad_token_id": 0}
    options[name] = 12 if name == "min_new_tokens" else 27
    expected = plain(model, input_ids, **options)
    assert expected.shape[1] >= 27
    script = ScriptedDrafter(expected, [10, 3, 10])
    assert torch.equal(LOOPS[loop](model, input_ids, script, **options), expected)


class StopAt(StoppingCriteria):
    """Ends a text at a length; remembers every prefix and the number of scores it was shown."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.seen: list[tuple[list[int], int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.seen.append((input_ids[0].tolist(), -1 if scores is None else len(scores)))
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


@pytest.mark.parametrize("output_scores", [False, True])
@pytest.mark.parametrize("new_tokens", [1, 2, 7, 10, 11, 12, 25])
def test_user_criterion_inside_an_accepted_block(new_tokens: int, output_scores: bool) -> None:
    """A criterion sees every verified prefix once, token by token, and ends the text there."""
    model, input_ids = target("olmo"), prompt(15)
    options = {"max_new_tokens": 30, "return_dict_in_generate": True, "output_scores": output_scores}
    expected, actual = StopAt(15 + new_tokens), StopAt(15 + new_tokens)
    reference = plain(model, input_ids, stopping_criteria=[expected], **options)
    script = scripted(model, input_ids, accept_lengths=[10, 4])
    output = failfast(model, input_ids, script, stopping_criteria=[actual], **options)
    assert torch.equal(output.sequences, reference.sequences)
    assert actual.seen == expected.seen
    assert output.speculation.emitted == new_tokens


@pytest.mark.parametrize("start", range(12))
def test_stop_string_inside_an_accepted_block(start: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """The text ends with a stop string, even one that two rounds complete."""
    model, input_ids = target("phi"), prompt(15)
    script = scripted(model, input_ids, accept_lengths=[5, 10])
    stop = tokenizer.decode(script.reference[0, 15 + start : 15 + start + 3])
    options = {"max_new_tokens": 40, "stop_strings": [stop], "tokenizer": tokenizer}
    reference = plain(model, input_ids, **options)
    assert reference.shape[1] <= 15 + start + 3
    assert torch.equal(failfast(model, input_ids, script, **options), reference)


def test_max_time() -> None:
    """`max_time` is checked after every token, not once a round."""
    model, input_ids = target("phi"), prompt(15)
    script = scripted(model, input_ids)
    assert failfast(model, input_ids, script, max_new_tokens=40, max_time=1e-9).shape[1] == 15 + 1
    output = failfast(model, input_ids, script, max_new_tokens=40, max_time=600.0)
    assert torch.equal(output, script.reference[:, : 15 + 40])


@pytest.mark.parametrize("loop", LOOPS)
def test_drafts_stay_inside_the_positions_of_the_target(loop: str) -> None:
    """Drafts end where the target's learned positions end."""
    model, input_ids = tiny_model("gpt2", max_position_embeddings=48), prompt(30)
    reference = plain(model, input_ids, max_new_tokens=18)
    eos = int(reference[0, 30 + first_new(reference, 30, 3)])
    options = {"max_new_tokens": 100, "eos_token_id": eos, "pad_token_id": 0}
    expected = plain(model, input_ids, **options)
    assert expected.shape[1] < 48
    options |= {"confidence_threshold": 0.0, "return_dict_in_generate": True}
    output = LOOPS[loop](model, input_ids, drafter("canvas"), **options)
    assert torch.equal(output.sequences, expected)
    assert output.speculation.records[0].drafted == 48 - 30
