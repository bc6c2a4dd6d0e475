"""Records the feeds of a model, and the reads of tensors by Python."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from hf_failfast.drafters import DiffusionDrafter
from hf_failfast.drafters.bodies.borrowed import SharedBody


@dataclass
class Feed:
    """The tokens and positions fed to one forward."""

    token_ids: list[int]
    positions: list[int]


def _body(model: Any) -> torch.nn.Module:
    return model.decoder if isinstance(model, SharedBody) else model


@contextmanager
def record_feeds(model: Any) -> Iterator[list[Feed]]:
    """The feeds of every forward of the model."""
    feeds: list[Feed] = []

    def hook(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"][0]
        positions = kwargs.get("position_ids")
        with host_reads_paused():
            feeds.append(Feed(ids.tolist(), [] if positions is None else positions[0].tolist()))

    handle = _body(model).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield feeds
    finally:
        handle.remove()


HOST_READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__")
_reads = threading.local()


@contextmanager
def host_reads_paused() -> Iterator[None]:
    """Reads in this context do not count: those of tests and of the models' own forwards."""
    depth = getattr(_reads, "paused", 0)
    _reads.paused = depth + 1
    try:
        yield
    finally:
        _reads.paused = depth


def count_from_the_start(proposer: DiffusionDrafter, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes reads count from the moment that a session of the drafter has started."""
    start = proposer.start

    def start_and_count(*args: Any) -> Any:
        session = start(*args)
        reads.clear()
        return session

    monkeypatch.setattr(proposer, "start", start_and_count)


@pytest.fixture
def host_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the transfers from tensor to Python made so far, outside of the models' forwards."""
    reads: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not getattr(_reads, "paused", 0):
                reads.append(name)
            with host_reads_paused():
                return original(self, *args, **kwargs)

        return read

    for name in HOST_READS:
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    forward = torch.nn.Module.__call__

    def call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        with host_reads_paused():
            return forward(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", call)
    return reads
