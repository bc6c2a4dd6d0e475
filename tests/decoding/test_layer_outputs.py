"""Hidden states and attention weights of every emitted token equal plain `generate`'s."""

from typing import Any

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, tiny_model
from scripted import ScriptedDrafter
from test_batch import LENGTHS, batch
from transformers import DynamicCache, PreTrainedModel

from hf_failfast.compatibility import CACHE

NAMES = ("hidden_states", "attentions")
ASKED: dict[str, Any] = {"return_dict_in_generate": True, "max_new_tokens": 20} | {f"output_{n}": True for n in NAMES}


@pytest.fixture(scope="module", params=["llama", "gemma2", "mistral", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Gemma 2 and Mistral have windows shorter than the texts."""
    return tiny_model(request.param, attn_implementation="eager")


def assert_same(actual: Any, expected: Any, row: int | None = None) -> None:
    """Compares step by step and layer by layer; `row` picks a row of `actual` if `expected` holds that row alone."""
    for name in NAMES:
        assert len(actual[name]) == len(expected[name]) > 0
        for ours, theirs in zip(actual[name], expected[name], strict=True):
            assert isinstance(ours, tuple)
            assert len(ours) == len(theirs)
            for layer, other in zip(ours, theirs, strict=True):
                layer = layer if row is None else layer[row : row + 1]
                if row is not None:  # the columns of the padding on the left
                    width = [slice(-size, None) for size in other.shape[1:]]
                    assert not torch.count_nonzero(layer[..., : layer.shape[-1] - other.shape[-1]])
                    layer = layer[(slice(None), *width)]
                torch.testing.assert_close(layer, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("lengths", [None, [0], [3, 0, 10, 1]])
def test_one_prompt(model: PreTrainedModel, lengths: list[int] | None) -> None:
    """Each step holds its own token's layers, without rejected tokens, at every accept length."""
    expected = plain(model, prompt(23), **ASKED)
    output = failfast(model, prompt(23), ScriptedDrafter(expected.sequences, lengths), **ASKED)
    assert torch.equal(output.sequences, expected.sequences)
    assert_same(output, expected)


def test_a_ragged_batch(model: PreTrainedModel) -> None:
    """Each row of a ragged batch has the layers it has alone; padding columns are zero."""
    ids, mask = batch()
    output = failfast(model, ids, drafter("canvas_shift"), attention_mask=mask, **ASKED)
    for row, length in enumerate(LENGTHS):
        shown = torch.ones(1, length, dtype=torch.long)
        assert_same(output, plain(model, prompt(length), attention_mask=shown, **ASKED), row)


def test_shapes_are_those_of_plain_generation(model: PreTrainedModel) -> None:
    """A batch's steps have the shapes of plain `generate`'s for the same batch."""
    ids, mask = batch()
    output = failfast(model, ids, drafter("canvas_shift"), attention_mask=mask, **ASKED)
    expected = plain(model, ids, attention_mask=mask, **ASKED)
    for name in NAMES:
        shapes = [[[layer.shape for layer in step] for step in steps[name]] for steps in (output, expected)]
        assert shapes[0] == shapes[1]


def test_a_second_turn(model: PreTrainedModel) -> None:
    """The first step of a second turn holds the new tokens only, and attends to the cache."""
    turns = []
    for generate in (plain, lambda *args, **options: failfast(*args, drafter("canvas_shift"), **options)):
        past = DynamicCache(config=model.config)
        first = generate(model, prompt(23), **{CACHE: past}, max_new_tokens=20)
        turns.append(generate(model, torch.cat([first, prompt(9)], dim=1), **{CACHE: past}, **ASKED))
    assert_same(turns[1], turns[0])
    assert turns[1].hidden_states[0][0].shape[1] == 10


def test_rows_that_end_early_are_zeros() -> None:
    """A row has zeros after its end, and its own layers up to it."""
    model = tiny_model("llama", attn_implementation="eager")
    ids, mask = batch()
    new = failfast(model, ids, drafter("canvas_shift"), attention_mask=mask, **ASKED).sequences[:, ids.shape[1] :]
    stop = int(new[0, 3])
    ends = [row.index(stop) if stop in row else len(row) for row in new.tolist()]
    output = failfast(
        model, ids, drafter("canvas_shift"), attention_mask=mask, eos_token_id=stop, pad_token_id=0, **ASKED
    )
    assert len(output.hidden_states) == len(output.sequences[0]) - ids.shape[1]
    for step, layers in enumerate(output.hidden_states):
        for row, end in enumerate(ends):
            assert bool(layers[-1][row].any()) == (step <= end)


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_logits_to_keep(kept: int) -> None:
    """Tokens and logits with `logits_to_keep` equal plain `generate`'s."""
    model = tiny_model("llama")
    options = {"max_new_tokens": 12, "return_dict_in_generate": True, "output_logits": True, "logits_to_keep": kept}
    expected = plain(model, prompt(9), **options)
    output = failfast(model, prompt(9), drafter("canvas_shift"), **options)
    assert torch.equal(output.sequences, expected.sequences)
    torch.testing.assert_close(output.logits, expected.logits)


@pytest.mark.parametrize("kept", [-1, torch.tensor([3])])
def test_logits_to_keep_of_chosen_rows_is_refused(kept: Any) -> None:
    """Refuses `logits_to_keep` < 0 or a tensor of rows."""
    with pytest.raises(ValueError, match="`logits_to_keep` must be a number >= 0"):
        failfast(tiny_model("llama"), prompt(9), drafter("canvas"), logits_to_keep=kept, max_new_tokens=3)


def test_attention_that_keeps_no_weights_is_refused() -> None:
    """Refuses `output_attentions` with sdpa, for which plain `generate` returns empty tuples."""
    with pytest.raises(ValueError, match="`output_attentions` with `attn_implementation`='sdpa'"):
        failfast(tiny_model("llama"), prompt(9), drafter("canvas"), **ASKED)


def test_attentions_over_a_static_cache_are_refused() -> None:
    """Refuses `output_attentions` with a static cache, where plain `generate` adds the empty slots' weights."""
    model = tiny_model("llama", attn_implementation="eager")
    with pytest.raises(ValueError, match="`output_attentions` with a static cache"):
        failfast(model, prompt(9), drafter("canvas"), cache_implementation="static", **ASKED)
