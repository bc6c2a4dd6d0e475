"""Drafters that wrap another drafter keep its contract."""

import copy
import inspect
from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import DRAFTERS, drafter, plain, prompt, saved_drafter, target
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import hf_failfast
from hf_failfast.drafters import Conversation, DiffusionDrafter, Learning, Wrapper
from hf_failfast.drafters.checkpoints.target_fit import MadeFor
from hf_failfast.drafters.denoising import Denoising
from hf_failfast.drafters.wrappers.cross_tokenizer import CrossTokenizerDrafter
from hf_failfast.experiments.replay import ReplayDrafter
from hf_failfast.experiments.sweeps import with_steps
from hf_failfast.measure.tracing import RecordingDrafter, trace


def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))


WRAPPED: dict[str, Callable[[DiffusionDrafter], DiffusionDrafter]] = {
    "Conversation": Conversation,
    "Learning": Learning,
    "RecordingDrafter": RecordingDrafter,
    "ReplayDrafter": lambda inner: ReplayDrafter(inner, [[([0.5], [True])]], []),
    "CrossTokenizerDrafter": lambda inner: CrossTokenizerDrafter(inner, tokenizer(), tokenizer()),
    "with_steps": lambda inner: with_steps(inner, 2),
    "with_denoising": lambda inner: inner.with_denoising(Denoising(2)),
}
# Attributes that a wrapper changes on purpose.
OWN = {"CrossTokenizerDrafter": {"drafts_by_chunks", "has_alternatives"}}


def subclasses(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def contract() -> set[str]:
    """Names of the attributes that `DiffusionDrafter` promises, without methods."""
    named = {name for name, value in vars(DiffusionDrafter).items() if not inspect.isfunction(value)}
    return {name for name in {*inspect.get_annotations(DiffusionDrafter), *named} if not name.startswith("_")}


@pytest.fixture
def inner() -> DiffusionDrafter:
    """A drafter with no attribute at its default value."""
    inner = copy.copy(drafter("canvas_shift", "llama"))
    inner.config = hf_failfast.FailFastConfig(0.7, 3, 9)
    inner.made_for = MadeFor("some/target", None)
    inner.drafts_by_chunks = False
    inner.runners = hf_failfast.load_drafter(saved_drafter("canvas_shift", "llama"), runner="eager").runners
    return inner


def test_every_wrapper_is_tried() -> None:
    """Each subclass of `Wrapper` in the package is in the table above."""
    found = {kind.__name__ for kind in subclasses(Wrapper) if kind.__module__.startswith("hf_failfast.")}
    assert found <= set(WRAPPED)


@pytest.mark.parametrize("name", WRAPPED)
def test_every_attribute_of_the_contract_is_forwarded(name: str, inner: DiffusionDrafter) -> None:
    """A wrapped drafter has the inner one's attributes, the same objects, and its modules."""
    wrapped = WRAPPED[name](inner)
    assert contract() >= {"config", "made_for", "drafts_by_chunks", "runners"}
    for attribute in contract() - OWN.get(name, set()):
        assert getattr(wrapped, attribute) is getattr(inner, attribute), attribute
    assert list(map(id, wrapped.modules())) == list(map(id, inner.modules()))


def test_a_trace_runs_eagerly_where_the_drafter_was_loaded_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing a drafter of `runner="eager"` asks for no graph, neither of the drafter nor of the target."""
    loaded = hf_failfast.load_drafter(saved_drafter("canvas_shift", "llama"), runner="eager")
    asked = []
    monkeypatch.setattr(loaded.runners.graphs, "is_available", lambda device: True)
    monkeypatch.setattr("hf_failfast.engine.runner_pool.CudaGraphRunner", lambda *_: asked.append(1))
    traced = trace(target("llama"), prompt(9), loaded, max_new_tokens=8, do_sample=False)
    assert not asked
    assert traced.stats.emitted == 8


@pytest.mark.parametrize("kind", [kind for kind in DRAFTERS if kind.startswith("canvas")])
def test_a_recorded_batch_is_the_plain_one(kind: str) -> None:
    """Wrapped sessions keep, accept and end the sequences of a batch as the inner one does."""
    model, ids = target("qwen2"), torch.cat([prompt(12), prompt(12, 1)])
    output = model.generate(
        ids,
        custom_generate="hf_failfast",
        assistant_model=RecordingDrafter(drafter(kind)),
        max_new_tokens=16,
        do_sample=False,
    )
    assert torch.equal(output, plain(model, ids, max_new_tokens=16))
