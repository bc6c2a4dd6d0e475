"""What a forward costs: eager, captured, and the memory floor."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_failfast.engine.cuda import fused_decoder, graph_runner, slot_attention
from hf_failfast.engine.cuda.compiled_layers import CompiledLayers
from hf_failfast.engine.cuda.graph_runner import CudaGraphRunner, KeptGraphs
from hf_failfast.engine.runner import EagerRunner, Head, raw_logits
from hf_failfast.engine.window import Window
from hf_failfast.experiments.floor import bytes_per_forward

from .machine import Machine


@contextmanager
def without(kind: str) -> Iterator[None]:
    """Captures take the model's own layers instead of the fused decoder; with `captured_sdpa` also the model's own
    attention instead of the kernel."""
    usable, build = slot_attention.is_usable, fused_decoder.build
    if kind in ("captured_sdpa", "captured_layers"):
        fused_decoder.build = lambda model, num_slots: "left out"
    if kind == "captured_sdpa":
        slot_attention.is_usable = lambda model: False
    try:
        yield
    finally:
        slot_attention.is_usable, fused_decoder.build = usable, build


def measure_passes(machine: Machine, model: PreTrainedModel) -> dict[str, Any]:
    """Milliseconds of a pass after 1,024 tokens, by number of rows: eager; captured with SDPA, with the attention
    kernel, and as it comes, by the fused decoder where that stands in; and the memory floor."""
    found: dict[str, Any] = {}
    for rows in (1, 16, 32, 64) if machine.is_gpu else (1, 16):
        floor = bytes_per_forward(model, machine.context + rows) / machine.bandwidth
        found[f"{rows} rows"] = {"floor_ms": 1e3 * floor} | {
            f"{kind}_ms": 1e3 * machine.seconds(forward_pass(machine, model, kind, rows))
            for kind in ("eager", "captured_sdpa", "captured_layers", "captured")
        }
    return found


def forward_pass(
    machine: Machine,
    model: PreTrainedModel,
    kind: str,
    rows: int,
    head: Head = raw_logits,
    batch: int = 1,
    compiled: CompiledLayers | None = None,
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A forward of `rows` tokens of each of `batch` sequences after a filled context, which forgets them again.

    compiled: where compiled layers are kept, which are then captured.
    """
    kept = KeptGraphs(machine.graphs(), compiled)
    runner = EagerRunner(model) if kind == "eager" else CudaGraphRunner(model, (), kept)
    cache = runner.new_cache(machine.context + graph_runner.MAX_WIDTH, batch)
    with torch.no_grad():
        prompt = torch.zeros(batch, machine.context, dtype=torch.long, device=machine.device)
        runner.run(Window(prompt, [0] * batch, read=1), cache)
    ids = torch.zeros(batch, rows, dtype=torch.long, device=machine.device)

    @torch.no_grad()
    def run() -> tuple[torch.Tensor, ...]:
        return runner.run(Window(ids, [machine.context] * batch, read=rows), cache, head).outputs

    with without(kind):
        run()
    if isinstance(runner, CudaGraphRunner):
        assert runner.replays, runner.kept.problem
    return run


def measure_liger(machine: Machine, drafter: PreTrainedModel) -> dict[str, Any]:
    """The drafter's passes with Liger's fused norms, SwiGLU and RoPE (`pip install liger-kernel`)."""
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2

    apply_liger_kernel_to_qwen2(fused_linear_cross_entropy=False, model=drafter)
    return measure_passes(machine, drafter)
