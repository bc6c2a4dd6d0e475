"""A diffusion drafter read as an autoregressive draft model."""

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, saved_drafter, shared_drafter, target
from sessions import chunk_of, session_of

from hf_failfast.measure.methods import autoregressive_twin, is_autoregressive, load_assistant


def test_the_twin_predicts_what_the_drafter_drafts_first() -> None:
    """The same weights on the same prefix: a draft of one token is the twin's greedy next token."""
    model = target("llama")
    shared = shared_drafter()
    twin = autoregressive_twin(shared, model)
    for length in (1, 5, 12):
        ids = prompt(length)
        session = session_of(shared, model, 64)
        first = chunk_of(session, ids, ids[:, :0], 1)
        logits = twin(ids).logits[0, -1].detach()
        assert int(first.token_ids) == int(logits.argmax())
        assert float(first.confidence) == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)


def test_drafting_with_the_twin_is_assisted_generation() -> None:
    model = target("llama")
    twin = autoregressive_twin(shared_drafter(), model)
    expected = plain(model, prompt(6), max_new_tokens=20)
    assert torch.equal(plain(model, prompt(6), max_new_tokens=20, assistant_model=twin), expected)


def test_the_drafter_stays_as_it_was() -> None:
    model, shared = target("llama"), shared_drafter()
    embedding = shared.model.decoder.get_input_embeddings()
    before = failfast(model, prompt(8), shared, max_new_tokens=12, return_dict_in_generate=True)["speculation"]
    autoregressive_twin(shared, model)
    after = failfast(model, prompt(8), shared, max_new_tokens=12, return_dict_in_generate=True)["speculation"]
    assert shared.model.decoder.get_input_embeddings() is embedding
    assert before.records == after.records


def test_only_causal_canvases_with_shift_read_as_one() -> None:
    assert is_autoregressive(drafter("canvas_shift"))
    for kind in ("canvas", "block_shift", "bidirectional_shift"):
        with pytest.raises(ValueError, match="cannot be read autoregressively"):
            autoregressive_twin(drafter(kind), target("qwen2"))


def test_a_drafter_s_folder_loads_as_its_twin_or_not_at_all() -> None:
    """A drafter's folder gives its twin, with the target's weights where it borrows them; others are refused."""
    twin = load_assistant(saved_drafter("canvas_shift"), target("qwen2"))
    assert torch.equal(twin(prompt(5)).logits[..., :120], target("qwen2")(prompt(5)).logits)
    with pytest.raises(ValueError, match="cannot be read autoregressively"):
        load_assistant(saved_drafter("block"), target("qwen2"))
