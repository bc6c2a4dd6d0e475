"""Triton's interpreter with a GPU's rounding, and the launches of a forward, counted without a GPU."""

import functools
import importlib.util
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

# Views that their schemas do not call so, and allocations.
FREE = {
    "_unsafe_view",
    "detach",
    "lift_fresh",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
}

Launch = Callable[[], None]


_listening = threading.local()


@functools.cache
def _listen() -> None:
    """Makes Triton's interpreter tell each launch to this thread's listener, from now on."""
    from triton.runtime.interpreter import GridExecutor

    original = GridExecutor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        def launch() -> None:
            with _disable_current_modes():  # the interpreter's own operations are none of the forward's
                original(self, *args, **kwargs)

        launch()
        seen = getattr(_listening, "seen", None)
        if seen is not None:
            seen(self.fn.__name__, launch)

    GridExecutor.__call__ = call


@contextmanager
def on_triton_launch(seen: Callable[[str, Launch], None]) -> Iterator[None]:
    """In this context `seen` gets each kernel that runs in Triton's interpreter: its name, and what runs it again.

    It sees the launches of its own thread.
    """
    if importlib.util.find_spec("triton") is not None:
        _listen()
    _listening.seen = seen
    try:
        yield
    finally:
        del _listening.seen


def _is_launch(func: Any) -> bool:
    """Whether an operation starts a kernel: it is neither a view nor an allocation."""
    name = func._schema.name.removeprefix("aten::")
    views = [each.alias_info for each in func._schema.returns]
    is_view = bool(views) and all(info is not None and not info.is_write for info in views)
    return not is_view and name not in FREE


class Launches(TorchDispatchMode):
    """Counts in its context what would be launched, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _is_launch(func):
            self.counts[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))

    @classmethod
    def of(cls, forward: Callable[[], Any]) -> Counter[str]:
        """The launches of one call."""
        launches = cls()

        def seen(name: str, launch: Launch) -> None:
            launches.counts[name] += 1

        with torch.no_grad(), launches, on_triton_launch(seen):
            forward()
        return launches.counts


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes Triton's interpreter round to bfloat16 as a GPU does, to the nearest even number: it cuts the bits off."""
    from triton import language
    from triton.runtime import interpreter

    cut = interpreter._convert_float

    def convert(values: numpy.ndarray, source: Any, target: Any, mode: Any) -> numpy.ndarray:
        if (source, target) != (language.float32, language.bfloat16):
            converted: numpy.ndarray = cut(values, source, target, mode)
            return converted
        rounded = torch.from_numpy(numpy.ascontiguousarray(values)).to(torch.bfloat16)
        return rounded.view(torch.uint16).numpy().reshape(values.shape)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
