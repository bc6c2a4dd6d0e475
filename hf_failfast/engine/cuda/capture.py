"""Capture and replay of CUDA graphs: the only code that calls CUDA's capture."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Outputs = tuple[torch.Tensor, ...]

# CUDA allows one capture at a time in a process.
_CAPTURING = threading.Lock()


class Rehearsal(TorchDispatchMode):
    """Refuses, in this thread, what a capture would: to wait for the device, or to copy between it and the host.

    A capture that CUDA breaks off leaves torch's allocator and random generator in a state from which only private
    functions lead back (see `_recover`), so that it is better not begun.
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


class Arena(NamedTuple):
    """Where graphs that are never replayed at the same time are captured: they share memory and a stream, and with the
    stream cuBLAS's workspace."""

    device: torch.device
    pool: torch.cuda._POOL_HANDLE
    stream: torch.cuda.Stream


class CudaGraphs:
    """Captures what a function launches on the GPU. Tests put a recorder of their own in its place."""

    def is_available(self, device: torch.device) -> bool:
        return device.type == "cuda" and torch.version.hip is None

    def new_arena(self, device: torch.device) -> Arena:
        with torch.cuda.device(device):
            return Arena(device, torch.cuda.graph_pool_handle(), torch.cuda.Stream())

    def capture(self, forward: Callable[[], Outputs], arena: Arena) -> tuple[Callable[[], None], Outputs]:
        """(replay, the tensors that each replay overwrites) of what `forward` launches.

        It runs once before, on the same stream: that compiles kernels, fills caches and allocates workspaces, none of
        which a capture may do. Raises whatever this or the capture raises, RuntimeError as a rule; in either case the
        caller's stream is current afterwards.
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
        return graph.replay, outputs


@contextmanager
def _followed_by(current: torch.cuda.Stream, side: torch.cuda.Stream) -> Iterator[None]:
    """Work goes to the side stream; what comes afterwards on the current one waits for it."""
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        current.wait_stream(side)


def _recover(arena: Arena) -> None:
    """Undoes what the end of a capture skips when CUDA has broken it off (torch 2.11 to 2.13): allocations stay routed
    to the arena's pool, and the random generator takes itself for captured until a capture ends well."""
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(arena.device.index, arena.pool)
    ends_well = torch.cuda.graph(torch.cuda.CUDAGraph(), stream=arena.stream, capture_error_mode="thread_local")
    with suppress(RuntimeError), ends_well:
        torch.zeros(1, device=arena.device)
