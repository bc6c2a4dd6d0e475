"""CUDA graphs without CUDA: records the operations of a forward and repeats them as a graph does."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten
from triton_support import Launch, on_triton_launch

from hf_failfast.engine.cuda.capture import CudaGraphs, Outputs, Rehearsal
from hf_failfast.engine.cuda.compiled_layers import Artifact, Call

# One capture at a time, as on a GPU: what records launches replaces a method of a class.
_CAPTURING = threading.Lock()


class _Tape(TorchDispatchMode):
    """Records every operation with the tensors it read and wrote, and every launch of Triton's interpreter."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, result))
        return result

    def launch(self, name: str, launch: Launch) -> None:
        self.steps.append((launch, (), {}, None))

    def compiled(self, run: Callable[[], Any]) -> Any:
        """A compiled layer is one step: its kernels are no operations of torch."""
        with _disable_current_modes():
            result = run()
        self.steps.append((run, (), {}, result))
        return result

    def replay(self) -> None:
        """Repeats every operation on the same addresses; decisions of Python are not taken again."""
        for func, args, kwargs, recorded in self.steps:
            new, old = (tree_flatten(result)[0] for result in (func(*args, **kwargs), recorded))
            for fresh, kept in zip(new, old, strict=True):
                if isinstance(kept, torch.Tensor) and fresh.data_ptr() != kept.data_ptr():
                    kept.copy_(fresh)


_recording = threading.local()
_run = Artifact.__call__


def _run_or_record(artifact: Artifact, call: Call) -> Any:
    tape = getattr(_recording, "tape", None)
    return _run(artifact, call) if tape is None else tape.compiled(partial(_run, artifact, call))


Artifact.__call__ = _run_or_record  # type: ignore[method-assign]


@contextmanager
def _recorded_by(tape: _Tape) -> Iterator[None]:
    """In this context the tape gets the compiled layers that this thread runs."""
    _recording.tape = tape
    try:
        yield
    finally:
        del _recording.tape


class _Arena:
    """Stands for a pool of memory and a stream."""


class Recorder(CudaGraphs):
    """Takes the place of `CudaGraphs` on the CPU.

    alive: what the recorder has handed out and something still refers to: arenas, tapes, and the tensors that replays
        write. On a GPU all of it is memory.
    """

    def __init__(self) -> None:
        self.captures = 0
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.fails: Callable[[int], bool] = lambda capture: False

    def is_available(self, device: torch.device) -> bool:
        return True

    def new_arena(self, device: torch.device) -> Any:
        arena = _Arena()
        self.alive.add(arena)
        return arena

    def capture(self, forward: Callable[[], Outputs], arena: Any) -> tuple[Callable[[], None], Outputs]:
        self.captures += 1
        with Rehearsal():
            forward()
        if self.fails(self.captures):
            raise torch.OutOfMemoryError("CUDA out of memory")
        tape = _Tape()
        with _CAPTURING, tape, on_triton_launch(tape.launch), _recorded_by(tape):
            outputs = forward()
        for output in outputs:
            output.fill_(torch.nan if output.is_floating_point() else -1)  # a capture does not execute its operations
        self.alive.update({id(each): each for each in (tape, *outputs)}.values())  # equality of tensors is a tensor
        return tape.replay, outputs
