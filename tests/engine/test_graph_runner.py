"""Forwards from graphs: equal to eager ones, captured once, kept, released, and given up without harm.

There is no GPU here: a recorder (`graph_support`) replaces CUDA's capture and repeats a forward's operations on the
addresses it saw. `benchmarks/gpu.py` checks the same on a GPU.
"""

import copy
import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from conftest import DRAFTERS, TARGETS, drafter, failfast, plain, prompt, shared_drafter, target, tiny_model
from graph_support import Recorder
from sessions import logits_of
from transformers import DynamicCache

import hf_failfast
from hf_failfast.compatibility import CACHE
from hf_failfast.drafters import DiffusionDrafter
from hf_failfast.engine import kernels
from hf_failfast.engine.cuda import graph_runner, slot_attention, static_slots
from hf_failfast.engine.cuda.graph_runner import CudaGraphRunner
from hf_failfast.engine.cuda.static_slots import KeptGraphs, Shape
from hf_failfast.engine.runner import EagerRunner, raw_logits
from hf_failfast.engine.runner_pool import RunnerPool
from hf_failfast.engine.window import Sight, Window

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def graphed(kind: str = "canvas_shift", graphs: Recorder | None = None, **options: Any) -> DiffusionDrafter:
    """A drafter of its own, whose generations use graphs."""
    original = shared_drafter() if kind == "shared" else drafter(kind, **options)
    result = copy.copy(original)
    result.runners = RunnerPool("cuda_graphs", graphs or Recorder())
    return result


def kept(drafter: DiffusionDrafter, model: Any) -> dict[str, KeptGraphs]:
    return drafter.runners._kept[model]


def check(model: Any, drafter: DiffusionDrafter, length: int = 20, new: int = 40, **options: Any) -> None:
    expected = plain(model, prompt(length), max_new_tokens=new)
    options = {"confidence_threshold": 0.3, "chunk_length": 4, "max_draft_length": 12} | options
    assert torch.equal(failfast(model, prompt(length), drafter, max_new_tokens=new, **options), expected)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged as a warning during the test."""
    messages: list[str] = []
    for module in (graph_runner, static_slots):
        monkeypatch.setattr(module.logger, "warning", lambda text, *values: messages.append(text % values))
    return messages


# Equal


@pytest.mark.parametrize("family", TARGETS)
def test_a_replay_equals_the_eager_forward(family: str) -> None:
    """Replays give eager logits for windows of several widths, with and without limits, after roll-backs too."""
    model, recorder = target(family), Recorder()
    runner, eager = CudaGraphRunner(model, (), KeptGraphs(recorder)), EagerRunner(model)
    cache, expected_cache = runner.new_cache(200), eager.new_cache(200)
    with torch.no_grad():
        for count in (20, 5, 1, 9, 17, 30, 3):
            ids, rows = prompt(count), min(count, 4)
            limit = None
            if count > 5:  # the window sees all of itself, as a canvas does
                limit = torch.full((count,), cache.lengths[0] + count)
            actual = logits_of(runner, ids, cache, rows, limit)
            torch.testing.assert_close(actual, logits_of(eager, ids, expected_cache, rows, limit), **TOLERANCE)
            for each in (cache, expected_cache):
                each.rollback(each.lengths[0] - count // 2)
    assert runner.replays == 6
    assert recorder.captures == 4  # 16 and 32 wide, with and without limits; one token


@pytest.mark.parametrize("kind", [*DRAFTERS, "shared"])
def test_generation(kind: str, warnings: list[str]) -> None:
    """With graphs every kind of drafter gives plain `generate`'s text, and later calls reuse the captures."""
    family = "llama" if kind == "shared" else "qwen2"
    model, recorder = target(family), Recorder()
    used = graphed(kind, recorder)
    check(model, used)
    captures = recorder.captures
    assert captures >= 1
    check(model, used)
    check(model, used, length=31)
    assert not warnings
    assert recorder.captures <= captures + 1, "captured again instead of reused"


def test_drafts_are_the_eager_ones() -> None:
    """Drafts from graphs are those of eager drafting, round by round."""
    model, options = target("qwen2"), {"max_new_tokens": 60, "return_dict_in_generate": True}
    expected = failfast(model, prompt(20), drafter("canvas_shift"), **options).speculation
    actual = failfast(model, prompt(20), graphed(), **options).speculation
    assert actual.records == expected.records
    assert actual.host_reads == expected.host_reads


def test_rows_and_hidden_states() -> None:
    """A replay returns the logits of the tokens asked for, and no hidden states of the padding."""
    model = target("llama")
    runner, eager = CudaGraphRunner(model, (0, 2), KeptGraphs(Recorder())), EagerRunner(model, (0, 2))
    caches = runner.new_cache(64), eager.new_cache(64)
    with torch.no_grad():
        for each, cache in zip((runner, eager), caches, strict=True):
            logits_of(each, prompt(10), cache, 1)
        for rows in (torch.tensor([2, 5]), torch.tensor([0]), 3):
            actual, expected = (
                each.run(Window(prompt(7), cache.lengths, rows), cache)
                for each, cache in zip((runner, eager), caches, strict=True)
            )
            torch.testing.assert_close(actual.outputs, expected.outputs, **TOLERANCE)
            assert actual.hidden_states is not None and expected.hidden_states is not None
            torch.testing.assert_close(actual.hidden_states, expected.hidden_states, **TOLERANCE)
    assert runner.replays == 3


def test_outputs_outlive_the_next_replay() -> None:
    """Later rounds do not overwrite the scores that the caller asked for."""
    model, options = target("qwen2"), {"max_new_tokens": 30, "return_dict_in_generate": True, "output_logits": True}
    expected = plain(model, prompt(20), **options).logits
    actual = failfast(model, prompt(20), graphed(), **options).logits
    torch.testing.assert_close(torch.stack(actual), torch.stack(expected), **TOLERANCE)


def test_batch() -> None:
    """Batches of different lengths get plain texts from graphs, also after a sequence has left the batch."""
    model, recorder = target("qwen2"), Recorder()
    ids = prompt(60).view(3, 20)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    options = {"attention_mask": mask, "max_new_tokens": 30, "pad_token_id": 0}
    expected = plain(model, ids, **options)
    used = graphed(graphs=recorder)
    assert torch.equal(failfast(model, ids, used, **options), expected)
    assert recorder.captures
    ends = {"eos_token_id": int(expected[0, 24])}  # one sequence ends early
    assert torch.equal(failfast(model, ids, used, **options, **ends), plain(model, ids, **options, **ends))


@pytest.mark.parametrize("inference_mode", [True, False])
def test_inference_mode(inference_mode: bool) -> None:
    """Slots made in inference mode can be written by a later call outside of it, and the other way round."""
    model, used = target("qwen2"), graphed()
    with torch.inference_mode(inference_mode):
        check(model, used)
    with torch.inference_mode(not inference_mode):
        check(model, used)


@pytest.mark.parametrize("family", ["qwen2", "mistral", "llama"])
def test_with_the_attention_kernel(family: str, monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    """With the kernel's two numbers per token as mask texts stay the same, sliding windows included."""
    model = target(family)
    monkeypatch.setattr(slot_attention, "is_usable", lambda model: True)
    calls: list[int] = []
    attention = kernels.attention
    monkeypatch.setattr(kernels, "attention", lambda *values: (calls.append(1), attention(*values))[1])
    check(model, graphed("shared" if family == "llama" else "block_shift", model_type=family))
    assert calls and not warnings
    assert model.config._attn_implementation == "sdpa"
    ids = torch.cat([prompt(20), prompt(20, seed=1)])
    options = {"attention_mask": torch.ones_like(ids).index_fill(1, torch.arange(4), 0), "max_new_tokens": 8}
    expected = plain(model, ids, **options)
    with slot_attention.slot_attention(model):  # what another thread sees
        assert torch.equal(plain(model, ids, **options), expected)


def test_the_attention_kernel_fails(monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    """If the attention kernel fails, graphs are captured without it, with one warning per model."""

    def fail(*values: Any) -> None:
        raise RuntimeError("out of resource: shared memory")

    model, used = target("qwen2"), graphed()
    monkeypatch.setattr(slot_attention, "is_usable", lambda model: True)
    monkeypatch.setattr(kernels, "attention", fail)
    check(model, used)
    assert len(warnings) == 2  # target and drafter
    assert all("without the attention kernel: RuntimeError: out of resource" in message for message in warnings)
    assert all(each.idle and not each.problem for each in kept(used, model).values())


# Sizes


def test_shapes_are_few() -> None:
    """Windows of any width and place share few shapes, and each shape holds its window."""

    def around(width: int, num_read: int, start: int, max_slots: int, is_limited: bool) -> Shape:
        ids = torch.zeros(1, width, dtype=torch.long)
        window = Window(ids, [start], num_read, Sight(torch.ones(width)) if is_limited else None)
        return Shape.around(window, max_slots, (), raw_logits)

    assert around(11, 4, 300, 4096, True) == (16, 512, 16, True, (), raw_logits, None)
    assert around(1, 1, 20, 4096, False) == (1, 256, 1, False, (), raw_logits, None)
    assert around(17, 17, 1020, 1024, False) == (32, 1024, 32, False, (), raw_logits, None)
    assert len({around(width, 10, 900, 4096, True) for width in range(2, 129)}) == 4
    assert all(around(w, 1, n, 4096, True).num_slots >= w + n for w in range(1, 129) for n in range(900))


def test_a_text_that_grows_past_a_bucket() -> None:
    """A text that outgrows the first bucket of slots is captured again with the next one."""
    model, recorder = target("qwen2"), Recorder()
    used = graphed(graphs=recorder)
    check(model, used, length=200, new=100)
    (slots,) = kept(used, model)["target"].idle
    assert {shape.num_slots for shape in slots.forwards} == {256, 512}


def test_a_text_that_outgrows_its_slots(monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    """A text that outgrows its fixed slots continues without graphs, with one warning per model."""
    monkeypatch.setattr(static_slots, "MAX_SLOTS", 64)
    check(target("qwen2"), graphed(), length=20, new=80)
    assert len(warnings) == 2, warnings  # target and drafter
    assert all("outgrown its 64 slots" in message for message in warnings)


def test_wide_windows_are_eager() -> None:
    """Prefills and windows wider than MAX_WIDTH are not captured."""
    model, recorder = target("qwen2"), Recorder()
    runner = CudaGraphRunner(model, (), KeptGraphs(recorder))
    cache = runner.new_cache(400)
    with torch.no_grad():
        for count in (30, 129, 1):
            logits_of(runner, prompt(count), cache, 1)
    assert (runner.replays, recorder.captures) == (1, 1)


# Kept, and released


def test_a_second_call_captures_nothing() -> None:
    """Later calls reuse the graphs and slots of the first."""
    model, recorder = target("qwen2"), Recorder()
    used = graphed(graphs=recorder)
    check(model, used)
    captures = recorder.captures
    for _ in range(3):
        check(model, used)
    assert recorder.captures == captures
    assert [len(each.idle) for each in kept(used, model).values()] == [1, 1]


def test_a_turn_that_begins_with_a_replay() -> None:
    """A call that continues a cache by a window that was captured before has plain `generate`'s text."""
    model, recorder = target("llama"), Recorder()
    proposer, cache = graphed(model_type="llama", graphs=recorder), DynamicCache(config=model.config)
    first = failfast(model, prompt(20), proposer, max_new_tokens=30, chunk_length=4, **{CACHE: cache})
    turn = torch.cat([first, prompt(3)], dim=1)
    captures = recorder.captures
    output = failfast(model, turn, proposer, max_new_tokens=30, chunk_length=4, **{CACHE: cache})
    assert torch.equal(output, plain(model, turn, max_new_tokens=30))
    assert recorder.captures == captures > 0


def test_a_forward_returns_what_the_call_asks_for() -> None:
    """A call that records logits gets logits, and captures only the target's forwards again."""
    model, recorder = target("qwen2"), Recorder()
    used = graphed(graphs=recorder)
    check(model, used)
    captures = recorder.captures
    options = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 40}
    expected = plain(model, prompt(20), **options)
    actual = failfast(
        model, prompt(20), used, confidence_threshold=0.3, chunk_length=4, max_draft_length=12, **options
    )
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert captures < recorder.captures < 2 * captures  # the drafter's serve both
    check(model, used)


def test_slots_are_clean_for_the_next_call() -> None:
    """NaN that an earlier text left in the slots do not reach the attention of the next call."""
    model, used = target("qwen2"), graphed()
    check(model, used)
    for each in kept(used, model).values():
        for keys, values in each.idle[0].buffers:
            keys.fill_(torch.nan)
            values.fill_(torch.nan)
    check(model, used)


def test_released_with_the_drafter_and_with_the_target() -> None:
    """Slots and graphs, gigabytes on a GPU, are freed with the drafter or the target."""
    model, used = copy.deepcopy(target("qwen2")), graphed()
    check(model, used)
    slots = [weakref.ref(each.idle[0]) for each in kept(used, model).values()]
    del used
    gc.collect()
    assert [each() for each in slots] == [None, None]

    used = graphed()
    check(model, used)
    slots = [weakref.ref(each.idle[0]) for each in kept(used, model).values()]
    del model
    gc.collect()
    assert [each() for each in slots] == [None, None]


def test_changed_weights_are_noticed() -> None:
    """Graphs stay after changes of weights in place, and are captured again for replaced weights."""
    model, used = copy.deepcopy(target("qwen2")), graphed()
    check(model, used)
    (slots,) = kept(used, model)["target"].idle
    with torch.no_grad():  # in place: the graph reads the new values
        model.lm_head.weight.mul_(-1)
    check(model, used)
    assert kept(used, model)["target"].idle == [slots]
    model.lm_head.weight = torch.nn.Parameter(-model.lm_head.weight.detach())
    check(model, used)
    (others,) = kept(used, model)["target"].idle
    assert others is not slots


def test_two_threads_with_one_drafter() -> None:
    """Concurrent calls with one drafter write plain `generate`'s texts."""
    model, used = target("qwen2"), graphed()
    prompts = [prompt(20, seed) for seed in range(4)]
    expected = [plain(model, ids, max_new_tokens=60) for ids in prompts]
    results: dict[int, torch.Tensor] = {}

    def run(index: int) -> None:
        results[index] = failfast(model, prompts[index], used, max_new_tokens=60)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[index], ids) for index, ids in enumerate(expected))


# Given up


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_capture_fails(failing: int, warnings: list[str]) -> None:
    """After a failed capture the calls continue without graphs, with one warning."""
    model, recorder = target("qwen2"), Recorder()
    recorder.fails = lambda capture: capture == failing
    used = graphed(graphs=recorder)
    check(model, used)
    check(model, used)
    assert warnings == ["Running without CUDA graphs: OutOfMemoryError: CUDA out of memory."]
    assert sorted(bool(each.problem) for each in kept(used, model).values()) == [False, True]
    assert all(not each.idle for each in kept(used, model).values() if each.problem)


def test_no_memory_for_the_slots(monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    """Without memory for the slots the calls continue without graphs."""

    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(static_slots, "_widened", fail)
    check(target("qwen2"), graphed())
    assert len(warnings) == 2 and all("OutOfMemoryError" in message for message in warnings)


def test_a_model_that_cannot_be_captured(monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    """A model that reads a number from the GPU runs without graphs, with one warning that says why."""
    model = copy.deepcopy(target("qwen2"))
    norm = type(model.model.norm)

    class Reading(norm):  # type: ignore[misc, valid-type]
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            assert hidden.abs().max().item() >= 0
            return super().forward(hidden)

    monkeypatch.setattr(model.model.norm, "__class__", Reading)
    used = graphed()
    check(model, used)
    reason = "RuntimeError: the forward waits for the device (aten._local_scalar_dense.default)"
    assert warnings == [f"Running without CUDA graphs: {reason}."]
    assert used.runners.why_eager(model, model, "target") == reason


def test_a_captured_forward_that_stores_nothing(warnings: list[str]) -> None:
    """A forward that leaves a layer out of the cache is not captured."""
    model = tiny_model("llama")
    runner = CudaGraphRunner(model, (), KeptGraphs(Recorder()))
    cache = runner.new_cache(100)
    logits_of(runner, prompt(20), cache, 1)
    model.model.layers[-1].forward = lambda states, **_: states
    logits_of(runner, prompt(5), cache, 1)
    assert runner.replays == 0
    assert any("stores nothing in the cache" in warning for warning in warnings)


def test_a_graph_that_computes_something_else(warnings: list[str]) -> None:
    """Graphs whose results differ from the eager forward's are given up with a warning."""

    class Wrong(Recorder):
        def capture(self, forward: Any, arena: Any) -> Any:
            replay, outputs = super().capture(forward, arena)

            def wrong() -> None:
                replay()
                outputs[0].mul_(1.1)

            return wrong, outputs

    check(target("qwen2"), graphed(graphs=Wrong()))
    assert len(warnings) == 2 and all("computes something else" in message for message in warnings)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.config.__setattr__("_attn_implementation", "flex_attention"), "'flex_attention'"),
        (lambda model: model.model.norm.train(), "training mode"),
        (lambda model: model.model.norm.register_forward_hook(lambda *_: None), "forward hooks"),
        (lambda model: model.compile(), "compiled"),
        (lambda model: model.model.norm.to("meta"), "spread over ['cpu', 'meta']"),
    ],
)
def test_obstacles(change: Any, reason: str, warnings: list[str]) -> None:
    """Models that cannot be captured run eagerly, with one warning that says why."""
    model = tiny_model("qwen2")
    runners = RunnerPool("auto", Recorder())
    assert isinstance(runners.target(model), CudaGraphRunner)
    assert runners.why_eager(model, model, "target") is None
    change(model)
    for _ in range(2):
        assert type(runners.target(model)) is EagerRunner
    assert len(warnings) == 1 and reason in warnings[0]
    why = runners.why_eager(model, model, "target")
    assert why is not None and reason in why


def test_autocast_is_eager() -> None:
    """Nothing is captured under autocast."""
    model, recorder = target("qwen2"), Recorder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        failfast(model, prompt(20), graphed(graphs=recorder), max_new_tokens=10)
    assert recorder.captures == 0


def test_without_cuda(warnings: list[str]) -> None:
    """On a CPU `auto` and `eager` run eagerly in silence; `cuda_graphs` does so with one warning per model."""
    model, used = target("qwen2"), copy.copy(drafter("canvas_shift"))
    for name in ("auto", "eager"):
        used.runners = RunnerPool(name)
        check(model, used)
        assert type(used.runners.target(model)) is EagerRunner
    assert not warnings
    assert used.runners.why_eager(model, model, "target") == "`runner='eager'` was asked for"
    used.runners = RunnerPool("cuda_graphs")
    check(model, used)
    check(model, used)
    assert [message.split(": ")[1] for message in warnings] == [
        f"they need an NVIDIA GPU, and the {role} is on cpu." for role in ("drafter", "target")
    ]


def test_the_option() -> None:
    """`load_drafter` passes on the runner's name, `auto` by default, and rejects unknown ones."""
    folder = hf_failfast.BUNDLED_DRAFTER
    assert hf_failfast.load_drafter(folder, runner="eager").runners.name == "eager"
    assert hf_failfast.load_drafter(folder).runners.name == "auto"
    with pytest.raises(ValueError, match="`runner` must be one of .* but is 'cuda'"):
        hf_failfast.load_drafter(folder, runner="cuda")  # type: ignore[arg-type]
