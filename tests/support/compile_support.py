"""What Inductor makes of a layer, counted without a GPU."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch._inductor


@contextmanager
def counted_launches(is_built: bool = True) -> Iterator[list[int]]:
    """In this context each graph that Inductor compiles adds what it would launch: its kernels after fusion, and its
    calls of others. Graphs that come from Inductor's cache are not compiled.

    is_built: False counts only, and runs what was traced operation by operation: a C++ compiler needs seconds.
    """
    from torch._inductor import config, ir
    from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode, Scheduler

    def is_launch(node: Any) -> bool:
        if isinstance(node, ExternKernelSchedulerNode):
            return not isinstance(node.node, ir.MultiOutput)  # an entry of another call's results
        return not isinstance(node, NopKernelSchedulerNode)

    counts: list[int] = []
    codegen, compiler = Scheduler.codegen, torch._inductor.compile

    def counting(scheduler: Any) -> None:
        counts.append(sum(map(is_launch, scheduler.nodes)))
        if not is_built:
            raise _Counted
        codegen(scheduler)

    def only_counted(graph: Any, inputs: list[Any], options: dict[str, Any]) -> Any:
        try:
            with config.patch(fx_graph_cache=False):
                compiler(copy.deepcopy(graph), inputs, options)
        except Exception as error:
            if not isinstance(error, _Counted) and "_Counted" not in str(error):
                raise
        return graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "codegen", counting)
        if not is_built:
            patch.setattr(torch._inductor, "compile", only_counted)
        yield counts


class _Counted(Exception):
    """A graph's launches are known."""


@contextmanager
def no_compilation() -> Iterator[None]:
    """In this context nothing may be compiled, nor taken from a cache."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._inductor, "compile", fail)
        yield
