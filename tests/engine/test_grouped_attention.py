"""Attention over grouped heads on a CPU: SDPA's results without SDPA's copies, and no effect on other forwards."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, target, tiny_model
from sessions import logits_of
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_failfast.engine.cpu import grouped_attention as module
from hf_failfast.engine.cpu.grouped_attention import NAME, grouped_attention, is_usable
from hf_failfast.engine.runner import EagerRunner

HEADS, GROUPS, SLOTS = 6, 2, 50


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The heads of queries and of keys in each call of SDPA."""
    counts = []
    attention = module.scaled_dot_product_attention

    def counted(query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        counts.append((query.shape[1], key.shape[1]))
        return attention(query, key, *rest, **options)

    monkeypatch.setattr(module, "scaled_dot_product_attention", counted)
    return counts


def states(width: int, num_rows: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys, values and a mask in which every token of the window sees other slots."""
    torch.manual_seed(width)
    query = torch.randn(num_rows, width, HEADS, 8).transpose(1, 2)
    keys, values = torch.randn(2, num_rows, GROUPS, 2 * SLOTS, 8)
    mask = torch.rand(num_rows, 1, width, SLOTS) < 0.5
    mask[..., 0] = True
    return query, keys[:, :, :SLOTS], values[:, :, :SLOTS], mask


LAYER: Any = SimpleNamespace(num_key_value_groups=HEADS // GROUPS, is_causal=True)


@pytest.mark.parametrize("threads", [1, 99])
@pytest.mark.parametrize("width", [1, 3, 40])
@pytest.mark.parametrize("is_float", [False, True])
def test_results(
    threads: int, width: int, is_float: bool, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gives SDPA's results; packs single tokens, and narrow windows if that leaves no thread idle."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    query, keys, values, mask = states(width)
    if is_float:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    found, _ = module._attend(LAYER, query, keys, values, mask, scaling=0.3)
    expected, _ = sdpa_attention_forward(LAYER, query, keys, values, mask, scaling=0.3)
    torch.testing.assert_close(found, expected)
    is_packed = width == 1 or (threads == 1 and width < 40)
    assert calls == [(GROUPS if is_packed else HEADS, GROUPS)]


def test_one_row_that_sees_all(calls: list[tuple[int, int]]) -> None:
    """A single token without a mask sees all slots, and its heads are packed by group."""
    query, keys, values, _ = states(1)
    found, _ = module._attend(LAYER, query, keys, values, None, scaling=0.3)
    expected, _ = sdpa_attention_forward(LAYER, query, keys, values, None, scaling=0.3)
    torch.testing.assert_close(found, expected)
    assert calls == [(GROUPS, GROUPS)]


@pytest.mark.parametrize(
    "options",
    [
        {"attention_mask": None},
        {"attention_mask": states(3)[3].expand(-1, HEADS, -1, -1)},
        {"attention_mask": states(3)[3][:, :, :1]},
        {"position_bias": torch.randn(1, HEADS, 3, SLOTS)},
    ],
)
def test_what_is_left_to_sdpa(options: dict[str, Any], calls: list[tuple[int, int]]) -> None:
    """Leaves to SDPA a missing mask, a mask per head, a broadcast mask, and options besides a mask."""
    query, keys, values, mask = states(3)
    arguments = {"attention_mask": mask, "scaling": 0.3} | options
    found, _ = module._attend(LAYER, query, keys, values, **arguments)
    expected, _ = sdpa_attention_forward(LAYER, query, keys, values, **arguments)
    torch.testing.assert_close(found, expected)
    assert not calls


def test_dropout_is_left_to_sdpa(calls: list[tuple[int, int]]) -> None:
    query, keys, values, mask = states(3)
    torch.manual_seed(0)
    found, _ = module._attend(LAYER, query, keys, values, mask, dropout=0.5)
    torch.manual_seed(0)
    assert torch.equal(found, sdpa_attention_forward(LAYER, query, keys, values, mask, dropout=0.5)[0])
    assert not calls


@pytest.mark.parametrize(
    ("model_type", "options", "expected"),
    [
        ("llama", {}, True),
        ("mistral", {}, True),
        ("llama", {"num_key_value_heads": 4}, False),
        ("llama", {"attn_implementation": "eager"}, False),
        ("gpt2", {}, False),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_key_value_heads": 2}, False),
    ],
)
def test_which_models(model_type: str, options: dict[str, Any], expected: bool) -> None:
    """Usable for grouped SDPA models only, and not for Falcon, which calls SDPA itself by its name."""
    assert is_usable(tiny_model(model_type, **options)) is expected


def test_target_and_drafter_use_it(calls: list[tuple[int, int]]) -> None:
    """The loop uses it for target and drafter; plain `generate` keeps the model's own attention."""
    model, proposer = target("llama"), drafter("canvas_shift", "llama")
    stats = failfast(
        model, prompt(20), proposer, max_new_tokens=30, max_draft_length=3, return_dict_in_generate=True
    ).speculation
    rounds = sum(record.drafted > 0 for record in stats.records)
    assert len(calls) >= 2 * (rounds - 1 + stats.drafter_passes)  # the first of them reads the prompt as SDPA
    calls.clear()
    plain(model, prompt(20), max_new_tokens=5)
    assert not calls
    assert {each.config._attn_implementation for each in (model, proposer.model)} == {"sdpa"}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_plain_generate_can_have_it(model_type: str, calls: list[tuple[int, int]]) -> None:
    """In the context plain `generate` uses it and writes the same text, nested contexts included."""
    model = tiny_model(model_type)
    ids = torch.cat([prompt(20), prompt(20, seed=1)])
    options = {"attention_mask": torch.ones_like(ids).index_fill(1, torch.arange(4), 0), "max_new_tokens": 20}
    expected = plain(model, ids, **options)
    assert not calls
    with grouped_attention(model):
        with grouped_attention(model):
            pass
        assert torch.equal(plain(model, ids, **options), expected)
        assert len(calls) >= 2 * 19
    assert model.config._attn_implementation == "sdpa"


def test_a_model_without_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="`grouped_attention` needs a model on a CPU"):
        grouped_attention(tiny_model("gpt2"))


def test_a_forward_that_fails() -> None:
    """The model has its own attention back after an exception."""
    model = tiny_model("llama")
    with pytest.raises(KeyError), grouped_attention(model):
        assert model.config._attn_implementation == NAME
        raise KeyError
    assert model.config._attn_implementation == "sdpa"


def test_other_threads() -> None:
    """Texts stay the same when other threads run while it is in place, or take it away in the middle."""
    model, proposer = tiny_model("llama"), drafter("canvas_shift", "llama")
    ids = torch.cat([prompt(20), prompt(20, seed=1)])
    padded = {"attention_mask": torch.ones_like(ids).index_fill(1, torch.arange(4), 0), "max_new_tokens": 20}
    expected = plain(model, ids, **padded)
    with grouped_attention(model):
        assert torch.equal(plain(model, ids, **padded), expected)
        assert is_usable(model)
    with grouped_attention(model):
        assert torch.equal(failfast(model, ids, proposer, **padded), expected)

    def leave(*_: Any) -> None:
        model.config._attn_implementation = "sdpa"

    model.model.layers[0].register_forward_hook(leave)
    assert torch.equal(failfast(model, ids, proposer, **padded), expected)


def test_contexts_that_overlap() -> None:
    """It stays in place until the last of several contexts ends, in whichever order they do."""
    model = tiny_model("llama")
    first, second = grouped_attention(model), module.in_place_of_sdpa(model)
    for contexts in ((first, second), (module.in_place_of_sdpa(model), grouped_attention(model))):
        for context in contexts:
            context.__enter__()
        contexts[0].__exit__(None, None, None)
        assert model.config._attn_implementation == NAME
        contexts[1].__exit__(None, None, None)
        assert model.config._attn_implementation == "sdpa"
    assert not module._CONTEXTS


def test_masks_are_given() -> None:
    """Windows of several tokens get a mask where it is in place: some models read a missing one by its name."""
    model = tiny_model("llama")
    runner = EagerRunner(model)
    cache = runner.new_cache(64)
    seen = []
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda layer, _, options: seen.append((options["attention_mask"] is None, model.config._attn_implementation)),
        with_kwargs=True,
    )
    for width in (9, 1, 3):
        logits_of(runner, prompt(width), cache, read=1)
    assert seen == [(True, "sdpa"), (True, NAME), (False, NAME)]
