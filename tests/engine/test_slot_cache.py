"""Slots: written in place, rolled back by a length, and no stale entry in sight."""

from typing import Any

import pytest
import torch
from conftest import TARGETS, drafter, failfast, plain, prompt, target, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from sessions import logits_of
from transformers import AutoConfig, DynamicCache

from hf_failfast.compatibility import CACHE
from hf_failfast.engine.runner import EagerRunner
from hf_failfast.engine.slot_cache import LayerWindow, SlotCache, SlotLayer, layer_windows, store


def states(values: list[float]) -> torch.Tensor:
    """One head of width 1: (1, 1, n, 1)."""
    return torch.tensor(values)[None, None, :, None]


def write(cache: SlotCache, values: list[float]) -> list[float]:
    keys, returned = cache.update(states(values), -states(values), 0)
    assert torch.equal(keys, -returned)
    cache.advance(len(values))
    return keys.flatten().tolist()


def test_update_returns_all_valid_slots() -> None:
    """An update returns all valid slots and the new ones, and none after the last token."""
    cache = SlotCache(1, 8)
    assert cache.get_seq_length() == 0
    assert write(cache, [1.0, 2.0]) == [1.0, 2.0]
    assert write(cache, [3.0]) == [1.0, 2.0, 3.0]
    assert cache.get_seq_length() == 3


def test_nothing_is_copied() -> None:
    """Rolling back and writing keep the buffer: nothing is allocated, moved or cleared."""
    cache = SlotCache(1, 8)
    write(cache, [1.0, 2.0, 3.0])
    buffer = cache.layers[0].keys
    cache.rollback(1)
    write(cache, [7.0])
    assert cache.layers[0].keys is buffer
    assert buffer.flatten().tolist() == [1.0, 7.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    keys, _ = cache.update(states([8.0]), states([8.0]), 0)
    assert keys.data_ptr() == buffer.data_ptr()


def test_a_roll_back_into_the_future_is_a_mistake() -> None:
    """Rejects a roll-back to a length beyond the valid slots."""
    cache = SlotCache(1, 3)
    write(cache, [1.0, 2.0])
    with pytest.raises(AssertionError, match="cannot roll back 2 slots to 3"):
        cache.rollback(3)


def test_slots_are_allocated_as_the_text_grows() -> None:
    """Memory follows the text, not the capacity, and grows with few copies."""
    cache = SlotCache(1, 100_000)
    copies, values = 0, []
    for step in range(500):
        held = cache.layers[0].keys
        write(cache, [float(step), float(-step)])
        values += [float(step), float(-step)]
        copies += cache.layers[0].keys is not held
    assert cache.layers[0].keys.shape[2] <= 2048
    assert copies <= 4
    assert cache.layers[0].keys[0, 0, :1000, 0].tolist() == values


def test_rows_of_different_length() -> None:
    """Each sequence is written after its own valid slots and returns its own entries."""
    cache = SlotCache(1, 16, num_rows=3)
    written = torch.arange(1.0, 13.0).view(3, 1, 4, 1)
    cache.update(written, -written, 0)
    cache.advance(4)
    cache.rollback([1, 4, 2])
    keys, values = cache.update(10 * written[:, :, :2], -10 * written[:, :, :2], 0)
    assert torch.equal(keys, -values)
    assert keys[0, 0, :3, 0].tolist() == [1, 10, 20]
    assert keys[1, 0, :6, 0].tolist() == [5, 6, 7, 8, 50, 60]
    assert keys[2, 0, :4, 0].tolist() == [9, 10, 90, 100]
    cache.advance(2)
    assert cache.lengths == [3, 6, 4]
    cache.keep([0, 2])
    assert cache.lengths == [3, 4]
    (states,) = cache.row(1)
    assert states[0].flatten().tolist() == [9, 10, 90, 100]


@given(
    st.lists(
        st.tuples(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=6), st.floats(0, 1)),
        min_size=1,
        max_size=12,
    )
)
def test_any_sequence_of_writes_and_rollbacks(steps: list[tuple[list[float], float]]) -> None:
    """After any order of writes and roll-backs the slots hold what a plain list holds."""
    cache, expected = SlotCache(1, 72), []
    for values, share in steps:
        expected += values
        assert write(cache, values) == expected
        kept = round(share * len(expected))
        cache.rollback(kept)
        expected = expected[:kept]
        assert cache.get_seq_length() == kept


@pytest.mark.parametrize("family", TARGETS)
def test_stale_nan_slots_do_no_harm(family: str) -> None:
    """NaN in the slots of rejected tokens do not reach the logits (a masked one would, as 0 * NaN)."""
    model = target(family)
    runner = EagerRunner(model)
    with torch.inference_mode():  # the slots are written there
        clean = runner.new_cache(64)
        logits_of(runner, prompt(20), clean, 1)
        expected = logits_of(runner, prompt(3), clean, 3)

        cache = runner.new_cache(64)
        logits_of(runner, prompt(20), cache, 1)
        logits_of(runner, prompt(9), cache, 1)
        cache.rollback(20)
        for layer in cache.layers:
            layer.keys[:, :, 20:] = torch.nan
            layer.values[:, :, 20:] = torch.nan
        actual = logits_of(runner, prompt(3), cache, 3)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_store(family: str, length: int) -> None:
    """The cache stored for the caller has plain generation's types, content and length, in memory of its own."""
    model = target(family)
    runner = EagerRunner(model)
    with torch.no_grad():
        slots = runner.new_cache(64)
        logits_of(runner, prompt(length), slots, 1)
        logits_of(runner, prompt(5), slots, 1)
        slots.rollback(length)
        plain = DynamicCache(config=model.config)
        model(prompt(length), **{CACHE: plain})
    converted = DynamicCache(config=model.config)
    store(converted, [slots.row(0)], [torch.arange(length)], length)
    assert converted.get_seq_length() == plain.get_seq_length() == length
    for ours, theirs in zip(converted.layers, plain.layers, strict=True):
        assert type(ours) is type(theirs)
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.values, theirs.values, atol=1e-5, rtol=1e-5)
        ours.keys.zero_()
    assert slots.layers[0].keys.abs().sum() > 0, "the caller's cache shares memory with the slots"


def test_layer_windows() -> None:
    """Returns each layer's sliding window, None for full attention; rejects recurrent layers."""
    assert layer_windows(target("llama").config) == [None, None]
    assert layer_windows(target("mistral").config) == [LayerWindow(16)] * 2
    assert sorted(layer_windows(target("gemma2").config), key=str) == [LayerWindow(16), None]
    recurrent = AutoConfig.for_model("lfm2", num_hidden_layers=2, layer_types=["conv", "full_attention"])
    with pytest.raises(ValueError, match="`lfm2` keeps .* cannot be rolled back"):
        layer_windows(recurrent)


def test_memory_is_the_slots() -> None:
    """A layer holds one buffer of the asked capacity each for keys and values, and no other memory."""
    model = tiny_model("llama")
    cache = EagerRunner(model).new_cache(50)
    with torch.no_grad():
        logits_of(EagerRunner(model), prompt(4), cache, 1)
    assert len(cache.layers) == 2
    for layer in cache.layers:
        assert isinstance(layer, SlotLayer)
        assert layer.keys.shape == layer.values.shape == (1, 2, 50, 8)
        held = [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
        assert sum(value.untyped_storage().nbytes() for value in held) == 2 * 2 * 50 * 8 * 4


def test_a_huge_max_length_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slots of target and drafter take less than 2 MiB for a short text with a huge `max_length`."""
    made: list[SlotCache] = []
    init = SlotCache.__init__

    def recorded(self: SlotCache, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(SlotCache, "__init__", recorded)
    model = tiny_model("llama", max_position_embeddings=10**8)
    stop = int(plain(model, prompt(20), max_new_tokens=30)[0, -1])
    failfast(model, prompt(20), drafter("canvas_shift", "llama"), max_length=10**8, eos_token_id=stop, pad_token_id=0)
    states = [kind for cache in made for layer in cache.layers for kind in (layer.keys, layer.values)]
    assert len(made) >= 2
    assert 0 < sum(kind.untyped_storage().nbytes() for kind in states if kind is not None) < 2**20
