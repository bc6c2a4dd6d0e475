"""Capture and replay of CUDA graphs: the only code that calls CUDA's capture."""

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Outputs = tuple[torch.Tensor, ...]

# CUDA allows one capture at a time in a process.
_CAPTURING = threading.Lock()


class Rehearsal(TorchDispatchMode):
    """Refuses, in this thread, what a capture refuses: waiting for the device, and copies between it and the host.

    A capture that CUDA aborts leaves torch's allocator and random generator in a state that only private functions
    can repair (see `_recover`), so that it is better not begun.
    """

    REFUSED = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.equal.default,
    )
    COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)}
        if func in self.REFUSED or (func in self.COPIES and len(devices) > 1):
            raise RuntimeError(f"the forward waits for the device ({func})")
        return result


class Arena:
    """Memory and stream (and so cuBLAS's workspace) shared by graphs that are never replayed at the same time."""

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self.device = device
            self.pool = torch.cuda.graph_pool_handle()
            self.stream = _STREAMS.take(device)
        weakref.finalize(self, _STREAMS.give_back, device, self.stream).atexit = False


class _IdleStreams:
    """Streams of arenas that are gone, for the next ones. torch keeps a workspace for cuBLAS, 33 MB on a large GPU, of
    every stream on which a product ever ran, and gives none back."""

    def __init__(self) -> None:
        self._idle: defaultdict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)
        self._lock = threading.RLock()  # a garbage collection may give a stream back at any time

    def take(self, device: torch.device) -> torch.cuda.Stream:
        with self._lock:
            return self._idle[device].pop() if self._idle[device] else torch.cuda.Stream()

    def give_back(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        with self._lock:
            self._idle[device].append(stream)


_STREAMS = _IdleStreams()


class _Replay:
    """Launches a graph. Its arena, and with it the stream, outlives the graph, whose end may clear what torch keeps
    for that stream: slots are released in this order."""

    __slots__ = ("graph", "arena")

    def __init__(self, graph: torch.cuda.CUDAGraph, arena: Arena) -> None:
        self.graph, self.arena = graph, arena

    def __call__(self) -> None:
        self.graph.replay()


class CudaGraphs:
    """Captures what a function launches on the GPU. Tests replace it with a recorder."""

    def is_available(self, device: torch.device) -> bool:
        return device.type == "cuda" and torch.version.hip is None

    def new_arena(self, device: torch.device) -> Arena:
        return Arena(device)

    def capture(self, forward: Callable[[], Outputs], arena: Arena) -> tuple[Callable[[], None], Outputs]:
        """(replay, the tensors that each replay overwrites) of what `forward` launches.

        `forward` first runs once on the same stream to compile kernels, fill caches and allocate workspaces: a capture
        may do none of this. Raises whatever either run raises, usually RuntimeError; in any case the caller's stream
        is current afterwards.
        """
        graph = torch.cuda.CUDAGraph()
        with _CAPTURING, torch.cuda.device(arena.device):
            current = torch.cuda.current_stream()
            arena.stream.wait_stream(current)
            # Around `torch.cuda.graph`, which does not restore the stream if the end of the capture raises.
            with _followed_by(current, arena.stream):
                with Rehearsal():  # type: ignore[no-untyped-call]
                    forward()
                captured = torch.cuda.graph(
                    graph, pool=arena.pool, stream=arena.stream, capture_error_mode="thread_local"
                )
                try:
                    with captured:
                        outputs = forward()
                except Exception:
                    _recover(arena)
                    raise
        return _Replay(graph, arena), outputs


@contextmanager
def _followed_by(current: torch.cuda.Stream, side: torch.cuda.Stream) -> Iterator[None]:
    """In this context work goes to the side stream; later work on the current one waits for it."""
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        current.wait_stream(side)


def _recover(arena: Arena) -> None:
    """Cleans up after a capture that CUDA aborted, as torch 2.11 to 2.13 do not: without it allocations stay routed to
    the arena's pool, and the random generator counts as captured until a capture succeeds."""
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(arena.device.index, arena.pool)
    ends_well = torch.cuda.graph(torch.cuda.CUDAGraph(), stream=arena.stream, capture_error_mode="thread_local")
    with suppress(RuntimeError), ends_well:
        torch.zeros(1, device=arena.device)
