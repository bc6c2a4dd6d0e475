"""A `Conversation` reads no token of earlier turns twice, and changes nothing else."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import DRAFTERS, LOOPS, drafter, failfast, plain, prompt, shared_drafter, target
from counters import record_feeds
from family_support import DATA
from scripted import ScriptedDrafter
from test_family_dflash import load as load_dflash
from transformers import AutoModelForCausalLM, DynamicCache

from hf_failfast import Conversation
from hf_failfast.compatibility import CACHE

NEW = 18
EXACT = {"max_new_tokens": NEW, "chunk_length": 4, "max_draft_length": 8, "return_dict_in_generate": True}


def conversation(model: Any, num_turns: int = 3) -> list[torch.Tensor]:
    """The prompt of each turn and, last, the whole text, as the target alone writes it."""
    size = model.config.vocab_size
    texts = [prompt(40) % size]
    for turn in range(1, num_turns + 1):
        answer = plain(model, texts[-1], max_new_tokens=NEW)
        texts.append(torch.cat([answer, prompt(7, seed=turn) % size], dim=1))
    return texts


def answer_of(text: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    return following[:, : text.shape[1] + NEW]


@pytest.mark.parametrize("has_cache", [False, True])
@pytest.mark.parametrize("kind", [*DRAFTERS, "shared"])
def test_a_turn_drafts_as_if_it_had_read_all(kind: str, has_cache: bool) -> None:
    """Each turn gives the same text and rounds as a drafter that reads everything."""
    model = target("llama")
    proposer = shared_drafter() if kind == "shared" else drafter(kind, "llama")
    session, cache = Conversation(proposer), DynamicCache(config=model.config)
    texts = conversation(model)
    for text, following in zip(texts, texts[1:], strict=False):
        options = EXACT | ({CACHE: cache} if has_cache else {})
        kept = failfast(model, text, session, **options)
        assert torch.equal(kept.sequences, answer_of(text, following))
        assert kept.speculation.records == failfast(model, text, proposer, **EXACT).speculation.records


@pytest.mark.parametrize("loop", LOOPS)
def test_a_turn_reads_what_is_new(loop: str) -> None:
    """After the first turn the drafter reads new tokens only."""
    model, proposer = target("llama"), drafter("canvas_shift", "llama")
    session, read = Conversation(proposer), []
    texts = conversation(model)
    for text, following in zip(texts, texts[1:], strict=False):
        with record_feeds(proposer.model) as feeds:
            output = LOOPS[loop](model, text, session, **EXACT)
        assert torch.equal(output.sequences, answer_of(text, following))
        read.append(len(feeds[0].token_ids))
        assert feeds[0].positions[0] >= (0 if len(read) == 1 else text.shape[1] - 7 - 8)
    assert read[0] >= 40
    assert max(read[1:]) <= 7 + 8 + 4, "the new question, what the last round added, the chunk"


def test_an_edited_text_is_read_from_the_edit_on() -> None:
    """After an edit the drafter reads from the first changed token on."""
    model, proposer = target("llama"), drafter("canvas_shift", "llama")
    session, text = Conversation(proposer), prompt(40)
    failfast(model, text, session, **EXACT)
    edited = text.clone()
    edited[0, 25] = (edited[0, 25] + 1) % 50
    for again, start in ((text, 39), (edited, 25), (prompt(40, seed=5), 0), (prompt(40, seed=5)[:, :3], 2)):
        with record_feeds(proposer.model) as feeds:
            output = failfast(model, again, session, **EXACT)
        assert feeds[0].positions[0] == start
        assert torch.equal(output.sequences, plain(model, again, max_new_tokens=NEW))
        assert output.speculation.records == failfast(model, again, proposer, **EXACT).speculation.records


def test_a_drafter_that_reads_hidden_states() -> None:
    """Hidden states of earlier turns are kept: even with the target's cache, drafts equal a fresh drafter's."""
    model = AutoModelForCausalLM.from_pretrained(DATA / "dflash" / "case_1" / "target", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    proposer = load_dflash()
    session, cache = Conversation(proposer), DynamicCache(config=model.config)
    texts = conversation(model)
    for text, following in zip(texts, texts[1:], strict=False):
        kept = failfast(model, text, session, **{CACHE: cache}, **EXACT)
        assert torch.equal(kept.sequences, answer_of(text, following))
        assert kept.speculation.drafted > 0
        assert kept.speculation.records == failfast(model, text, proposer, **EXACT).speculation.records
    # Without the cache the target gives again what the session has; with another text's cache it leaves a gap.
    kept = failfast(model, texts[-1], session, **EXACT)
    assert torch.equal(kept.sequences, plain(model, texts[-1], max_new_tokens=NEW))
    assert kept.speculation.drafted > 0
    gap = failfast(model, texts[1], Conversation(proposer), **{CACHE: cache_of(model, texts[0])}, **EXACT)
    assert torch.equal(gap.sequences, plain(model, texts[1], max_new_tokens=NEW))
    assert gap.speculation.drafted == 0


def cache_of(model: Any, text: torch.Tensor) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    model(text, **{CACHE: cache})
    return cache


def interrupt(call: int) -> Callable[..., None]:
    calls = []

    def hook(*_: Any) -> None:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt

    return hook


@pytest.mark.parametrize("call", [1, 2, 5])
@pytest.mark.parametrize("who", ["drafter", "target"])
def test_an_interrupted_turn(who: str, call: int) -> None:
    """After an interrupted turn, the same turn gives a fresh drafter's rounds."""
    model, proposer = target("llama"), drafter("canvas_shift", "llama")
    session, texts = Conversation(proposer), conversation(model, 1)
    failfast(model, texts[0], session, **EXACT)
    handle = (proposer.model if who == "drafter" else model).register_forward_pre_hook(interrupt(call))
    with pytest.raises(KeyboardInterrupt):
        failfast(model, texts[1], session, **EXACT)
    handle.remove()
    kept = failfast(model, texts[1], session, **EXACT)
    assert kept.speculation.records == failfast(model, texts[1], proposer, **EXACT).speculation.records


def test_one_call_at_a_time() -> None:
    """A second call in another thread is refused while the first one runs."""
    model, session = target("llama"), Conversation(drafter("canvas", "llama"))
    started, go_on = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        started.set()
        go_on.wait(20)

    handle = session.drafter.model.register_forward_pre_hook(wait)
    thread = threading.Thread(target=lambda: failfast(model, prompt(9), session, max_new_tokens=4))
    thread.start()
    started.wait(20)
    with pytest.raises(RuntimeError, match="in use by another call"):
        failfast(model, prompt(9), session, max_new_tokens=4)
    go_on.set()
    thread.join()
    handle.remove()
    failfast(model, prompt(9), session, max_new_tokens=4)


def test_refusals(tokenizer: Any) -> None:
    """Refuses batches, another target, a nested `Conversation` and another tokenizer."""
    session = Conversation(drafter("canvas", "llama"))
    with pytest.raises(ValueError, match="keeps one text, but there are 2"):
        failfast(target("llama"), prompt(9).repeat(2, 1), session, max_new_tokens=4)
    failfast(target("llama"), prompt(9), session, max_new_tokens=4)
    with pytest.raises(ValueError, match="a Conversation of another target"):
        failfast(target("qwen2"), prompt(9), session, max_new_tokens=4)
    with pytest.raises(ValueError, match="`drafter` must be"):
        Conversation(session)
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, unk_token="!")
    other.add_tokens(["<another>"])
    with pytest.raises(ValueError, match="Conversation cannot be combined with `assistant_tokenizer`"):
        failfast(target("llama"), prompt(9), session, tokenizer=tokenizer, assistant_tokenizer=other)


def test_a_drafter_that_cannot_keep_anything() -> None:
    """Takes drafters whose sessions do not define `inherit`."""
    model, texts = target("llama"), conversation(target("llama"), 2)
    session = Conversation(ScriptedDrafter(texts[-1], [3, 0, 10]))
    for text, following in zip(texts[:2], texts[1:], strict=True):
        assert torch.equal(failfast(model, text, session, max_new_tokens=NEW), answer_of(text, following))


def test_goodput_measures_the_drafter() -> None:
    """`length_policy="goodput"` works in new conversations of one drafter, with the target's text."""
    model, proposer = target("llama"), drafter("canvas", "llama")
    for session in (Conversation(proposer), Conversation(proposer)):
        output = failfast(model, prompt(40), session, max_new_tokens=NEW, length_policy="goodput")
        assert torch.equal(output, plain(model, prompt(40), max_new_tokens=NEW))
