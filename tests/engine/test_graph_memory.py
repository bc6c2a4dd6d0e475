"""Graphs, slots and arenas end with their drafter or target, after errors and threads too.

On the recorder, memory is what is still referenced. `benchmarks/gpu.py` counts the bytes on a GPU.
"""

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import drafter, failfast, prompt, shared_drafter, target
from graph_support import Recorder

from hf_failfast.drafters import DiffusionDrafter, DraftRequest, DraftSession
from hf_failfast.drafters.wrappers.base import Wrapper
from hf_failfast.engine.cuda import capture, graph_runner
from hf_failfast.engine.cuda.capture import CudaGraphs
from hf_failfast.engine.cuda.static_slots import StaticSlots
from hf_failfast.engine.runner_pool import RunnerPool


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[torch.Tensor]]:
    """The K/V at fixed addresses that were made during the test."""
    made: list[weakref.ref[torch.Tensor]] = []

    class Counted(StaticSlots):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.extend(weakref.ref(states) for pair in self.buffers for states in pair)

    monkeypatch.setattr(graph_runner, "StaticSlots", Counted)
    return made


@pytest.fixture(autouse=True)
def without_collections() -> Iterator[None]:
    """A release must not wait for the garbage collector, which comes late where little memory of the host is used."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def graphed(recorder: Recorder, kind: str = "canvas_shift") -> DiffusionDrafter:
    used = copy.copy(shared_drafter(3) if kind == "shared" else drafter(kind))
    used.runners = RunnerPool("cuda_graphs", recorder)
    return used


def call(model: Any, used: DiffusionDrafter, new: int = 24, **options: Any) -> torch.Tensor:
    options = {"confidence_threshold": 0.3, "chunk_length": 4, "max_draft_length": 12} | options
    result: torch.Tensor = failfast(model, prompt(20), used, max_new_tokens=new, **options)
    return result


def in_use(recorder: Recorder, buffers: list[weakref.ref[torch.Tensor]]) -> int:
    return len(recorder.alive) + sum(each() is not None for each in buffers)


@pytest.mark.parametrize("kind", ["canvas_shift", "block_shift", "shared"])
def test_a_drafter_ends(kind: str, buffers: list[weakref.ref[torch.Tensor]]) -> None:
    """With the drafter goes all that graphs need, the target's included."""
    recorder = Recorder()
    model, used = target("llama" if kind == "shared" else "qwen2"), graphed(recorder, kind)
    call(model, used)
    assert buffers and len(recorder.alive) > 4
    del used
    assert in_use(recorder, buffers) == 0


def test_a_target_ends(buffers: list[weakref.ref[torch.Tensor]]) -> None:
    """With the target goes all that graphs need, the drafter's for that target included."""
    recorder = Recorder()
    model, used = copy.deepcopy(target("qwen2")), graphed(recorder)
    call(model, used)
    kept = [weakref.ref(slots) for each in used.runners._kept[model].values() for slots in each.idle]
    del model
    gc.collect()  # the model itself has cycles
    assert len(kept) == 2 and not any(each() for each in kept)
    assert in_use(recorder, buffers) == 0


def test_longer_texts_and_other_batches(buffers: list[weakref.ref[torch.Tensor]]) -> None:
    """Slots that a longer text replaces go at once; those of another number of rows are kept beside them."""
    recorder = Recorder()
    model, used = target("qwen2"), graphed(recorder)
    call(model, used)
    once = in_use(recorder, buffers)
    call(model, used, new=300)
    assert len([each for each in buffers if each() is not None]) == len(buffers) // 2
    ids = prompt(40).view(2, 20)
    failfast(model, ids, used, attention_mask=torch.ones_like(ids), max_new_tokens=8)
    assert in_use(recorder, buffers) > once
    del used
    assert in_use(recorder, buffers) == 0


class Stopped(RuntimeError):
    pass


class Failing(DraftSession):
    """Fails in its third round."""

    def __init__(self, session: DraftSession) -> None:
        self.session, self.rounds = session, 0

    def draft(self, *arguments: Any) -> Any:
        self.rounds += 1
        if self.rounds == 3:
            raise Stopped
        return self.session.draft(*arguments)

    def accept(self, counts: Any) -> None:
        self.session.accept(counts)


class Interrupted(Wrapper):
    def __init__(self, drafter: DiffusionDrafter, session: Callable[[DraftSession], DraftSession]) -> None:
        super().__init__(drafter)
        self.session = session

    def start(self, request: DraftRequest) -> DraftSession:
        return self.session(self.drafter.start(request))


@pytest.mark.parametrize("errors", ["plain", "raise"])
def test_after_an_error(errors: str, buffers: list[weakref.ref[torch.Tensor]]) -> None:
    """A drafter that fails in the middle of a call leaves nothing lent."""
    recorder = Recorder()
    model, used = target("qwen2"), Interrupted(graphed(recorder), Failing)
    if errors == "raise":
        with pytest.raises(Stopped) as caught:
            call(model, used, drafter_errors=errors)
        del caught
        gc.collect()  # an exception refers to the frames that it passed
    else:
        call(model, used)
    assert buffers and [len(each.idle) for each in used.runners._kept[model].values()] == [1, 1]
    del used
    assert in_use(recorder, buffers) == 0


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_after_a_failed_capture(failing: int, buffers: list[weakref.ref[torch.Tensor]]) -> None:
    """A model given up holds nothing from the end of the call on, though drafter and target live."""
    recorder = Recorder()
    recorder.fails = lambda number: number >= failing
    model, used = target("qwen2"), graphed(recorder)
    call(model, used)
    kept = used.runners._kept[model].values()
    given_up = [each for each in kept if each.problem]
    assert given_up and not any(each.idle for each in given_up)
    if len(given_up) == 2:
        assert in_use(recorder, buffers) == 0
    del used
    del kept, given_up
    assert in_use(recorder, buffers) == 0


def test_after_threads(buffers: list[weakref.ref[torch.Tensor]]) -> None:
    """Threads leave as many slots as ran at a time, and none after the drafter's end."""
    recorder = Recorder()
    model, used = target("qwen2"), graphed(recorder)
    threads = [threading.Thread(target=call, args=(model, used)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(each.idle) <= 3 for each in used.runners._kept[model].values())
    del used, thread, threads
    assert in_use(recorder, buffers) == 0


def test_after_a_draft_that_came_too_late(buffers: list[weakref.ref[torch.Tensor]]) -> None:
    """A thread abandoned at `drafter_timeout` gives its slots back when it ends."""
    recorder, goes_on = Recorder(), threading.Event()
    model = target("qwen2")

    class Waiting(Failing):
        def draft(self, *arguments: Any) -> Any:
            self.rounds += 1
            if self.rounds == 3:
                goes_on.wait(60)
            return self.session.draft(*arguments)

    used = Interrupted(graphed(recorder), Waiting)
    call(model, used, drafter_timeout=2.0)
    abandoned = [thread for thread in threading.enumerate() if thread.name == "hf_failfast drafter"]
    assert abandoned
    goes_on.set()
    while abandoned:
        abandoned.pop().join()
    del used
    assert in_use(recorder, buffers) == 0


def test_a_request_alone(buffers: list[weakref.ref[torch.Tensor]]) -> None:
    """A session that is started and forgotten holds nothing."""
    recorder = Recorder()
    used = graphed(recorder)
    used.start(DraftRequest(target("qwen2"), 64))
    assert in_use(recorder, buffers) == 0


def test_streams_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arenas that follow one another share a stream, for which torch keeps memory; those that live together do not."""

    class Device:
        def __init__(self, device: torch.device) -> None:
            pass

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: object())
    monkeypatch.setattr(capture, "_STREAMS", type(capture._STREAMS)())
    graphs, device = CudaGraphs(), torch.device("cuda", 0)
    first, second = graphs.new_arena(device), graphs.new_arena(device)
    other = graphs.new_arena(torch.device("cuda", 1))
    streams = {id(arena.stream): arena.stream for arena in (first, second, other)}
    assert len(streams) == 3
    graph, stream = weakref.WeakSet[Any](), second.stream
    launched = capture._Replay(_Graph(), second)  # type: ignore[arg-type]
    graph.add(launched.graph)
    del second
    assert graphs.new_arena(device).stream is not stream  # a graph on it is still there
    del launched
    assert not graph
    again = graphs.new_arena(device)
    assert id(again.stream) in streams
    assert again.stream is stream


class _Graph:
    """Stands for a graph."""
