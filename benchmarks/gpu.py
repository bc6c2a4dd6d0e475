"""Everything that a GPU has to answer, in one run: are graphs and kernels right, how fast are they, what is a round.

    python benchmarks/gpu.py                  # at most 9 minutes on one large GPU; 32B needs 80 GB
    python benchmarks/gpu.py --cpu-check      # the same code with tiny shapes and a stand-in for graphs

Models are made on the device from configs, with random bfloat16 weights: passes cost what they cost with trained ones.
Rounds are therefore replays, with the paper's mean acceptance length instead of their own. Each section is run as long
as there is time, and a failure is recorded in its place. The last line printed is one JSON document, which is stored
with the hardware in its name.
"""

import functools
import gc
import json
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import hf_failfast
from hf_failfast import graph_runner, kernels, slot_attention
from hf_failfast.cuda_graphs import CudaGraphs, Outputs
from hf_failfast.drafters import DrafterSpec
from hf_failfast.drafters.masked import MaskedDrafter
from hf_failfast.graph_runner import CudaGraphRunner, KeptGraphs
from hf_failfast.kernels import reference
from hf_failfast.provenance import provenance
from hf_failfast.runner_choice import Runners
from hf_failfast.runners import EagerRunner

RESULTS = Path(__file__).parent.parent / "eval" / "results"

# FailFast with Fast-dLLM v2 1.5B on MATH: tokens per round, from the authors' latency breakdown (arXiv 2512.20573).
TOKENS_PER_ROUND = 6.55

SHAPES: dict[str, dict[str, int | bool]] = {
    "small": {"hidden": 1536, "layers": 4, "heads": 12, "kv_heads": 2, "inter": 8960, "vocab": 2000, "tied": False},
    "1.5B": {"hidden": 1536, "layers": 28, "heads": 12, "kv_heads": 2, "inter": 8960, "vocab": 151936, "tied": True},
    "7B": {"hidden": 3584, "layers": 28, "heads": 28, "kv_heads": 4, "inter": 18944, "vocab": 152064, "tied": False},
    "14B": {"hidden": 5120, "layers": 48, "heads": 40, "kv_heads": 8, "inter": 13824, "vocab": 152064, "tied": False},
    "32B": {"hidden": 5120, "layers": 64, "heads": 40, "kv_heads": 8, "inter": 27648, "vocab": 152064, "tied": False},
}
TINY = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "inter": 96, "vocab": 500, "tied": False}


class Repeated(CudaGraphs):
    """Stands for graphs where there is no GPU: a replay runs the forward again."""

    def is_available(self, device: torch.device) -> bool:
        return True

    def new_arena(self, device: torch.device) -> Any:
        return None

    def capture(self, forward: Callable[[], Outputs], arena: Any) -> tuple[Callable[[], None], Outputs]:
        outputs = forward()

        def replay() -> None:
            for output, new in zip(outputs, forward(), strict=True):
                output.copy_(new)

        return replay, outputs


@dataclass
class Machine:
    device: torch.device
    deadline: float
    bandwidth: float = 0.0  # bytes per second

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def context(self) -> int:
        return 1024 if self.is_gpu else 64

    def graphs(self) -> CudaGraphs:
        return CudaGraphs() if self.is_gpu else Repeated()

    def model(self, name: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
        """A Qwen2 of the shape, random weights made on the device."""
        shape = SHAPES[name] if self.is_gpu else TINY
        config = AutoConfig.for_model(
            "qwen2",
            hidden_size=shape["hidden"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kv_heads"],
            intermediate_size=shape["inter"],
            vocab_size=shape["vocab"],
            tie_word_embeddings=shape["tied"],
            max_position_embeddings=32768,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()

    def seconds(self, function: Callable[[], Any], repeats: int = 20) -> float:
        """Median wall-clock seconds of a call, the wait for the device included."""
        times = []
        for _ in range(repeats + 3 if self.is_gpu else 1):
            self.wait()
            start = perf_counter()
            function()
            self.wait()
            times.append(perf_counter() - start)
        times = sorted(times[3:] or times)
        return times[len(times) // 2]

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()


# What is right


def compare_generations(machine: Machine) -> dict[str, Any]:
    """Tokens in fp32: plain, drafted eagerly, drafted from graphs; and the ways in which graphs may fail."""
    target = _small(machine)
    prompt = torch.arange(40, device=machine.device)[None] % 400
    settings = {"max_new_tokens": 200 if machine.is_gpu else 10, "do_sample": False}
    expected = target.generate(prompt, **settings)
    found: dict[str, Any] = {}
    for attention, block in (("causal_canvas", None), ("block_causal", 32)):
        for name in ("eager", "cuda_graphs"):
            drafter = _own_drafter(machine, target, attention, block, name)
            first = _generate(target, prompt, drafter, settings)
            again = _generate(target, prompt, drafter, settings)
            found[f"{attention}, {name}"] = bool(torch.equal(first, expected) and torch.equal(again, expected))
    found["threads"] = _in_threads(target, prompt, _own_drafter(machine, target), settings, expected)
    found["captures in a second call"] = _captures_in_a_second_call(machine, target, prompt, settings)
    found["a failed capture"] = _after_failed_capture(machine, target, prompt, settings, expected)
    found["memory released"] = _memory_released(machine, target, prompt, settings)
    return found


def _small(machine: Machine) -> PreTrainedModel:
    """In fp32, with logits well apart: rounding decides nothing."""
    model = machine.model("small", torch.float32)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    return model


def _own_drafter(
    machine: Machine,
    target: PreTrainedModel,
    attention: Any = "causal_canvas",
    block: int | None = None,
    runner: Any = "cuda_graphs",
) -> MaskedDrafter:
    """The target's own weights as its drafter, so that some drafts are accepted."""
    spec = DrafterSpec(attention, 1, 499, block_size=block)
    drafter = MaskedDrafter(target, spec, hf_failfast.FailFastConfig(confidence_threshold=0.3, chunk_length=4))
    drafter.runners = Runners(runner, machine.graphs())
    return drafter


def _generate(
    target: PreTrainedModel, prompt: torch.Tensor, drafter: MaskedDrafter, settings: dict[str, Any]
) -> torch.Tensor:
    return target.generate(prompt, assistant_model=drafter, custom_generate="hf_failfast", **settings)


def _in_threads(
    target: PreTrainedModel,
    prompt: torch.Tensor,
    drafter: MaskedDrafter,
    settings: dict[str, Any],
    expected: torch.Tensor,
) -> bool:
    results: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(_generate(target, prompt, drafter, settings))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(results) == 3 and all(torch.equal(result, expected) for result in results)


def _captures_in_a_second_call(
    machine: Machine, target: PreTrainedModel, prompt: torch.Tensor, settings: dict[str, Any]
) -> int:
    drafter = _own_drafter(machine, target)
    counts = []
    for _ in range(2):
        _generate(target, prompt, drafter, settings)
        kept = drafter.runners._kept[target].values()
        counts.append(sum(len(slots.forwards) for each in kept for slots in each.idle))
    assert counts[0] > 0, "nothing was captured"
    return counts[1] - counts[0]


def _after_failed_capture(
    machine: Machine, target: PreTrainedModel, prompt: torch.Tensor, settings: dict[str, Any], expected: torch.Tensor
) -> bool:
    """A synchronisation inside of the capture makes CUDA refuse it; the text must be right, and later graphs too."""
    drafter = _own_drafter(machine, target)
    norm = target.model.norm
    forward = norm.forward

    def reading(hidden: torch.Tensor) -> torch.Tensor:
        if machine.is_gpu and torch.cuda.is_current_stream_capturing():
            hidden.sum().item()
        return forward(hidden)

    norm.forward = reading
    try:
        is_right = torch.equal(_generate(target, prompt, drafter, settings), expected)
    finally:
        del norm.forward
    is_given_up = not machine.is_gpu or any(each.problem for each in drafter.runners._kept[target].values())
    torch.rand(1, device=machine.device)  # raises if the generator takes itself for captured
    later = _generate(target, prompt, _own_drafter(machine, target), settings)
    return bool(is_right and is_given_up and torch.equal(later, expected))


def _memory_released(
    machine: Machine, target: PreTrainedModel, prompt: torch.Tensor, settings: dict[str, Any]
) -> dict[str, float]:
    """GB allocated before, with a drafter's graphs, and after the drafter is gone."""
    drafter = _own_drafter(machine, target)
    used = [_gigabytes(machine)]
    _generate(target, prompt, drafter, settings)
    used.append(_gigabytes(machine))
    del drafter
    gc.collect()
    used.append(_gigabytes(machine))
    return dict(zip(("before", "with graphs", "after"), used, strict=True))


def _gigabytes(machine: Machine) -> float:
    return torch.cuda.memory_allocated() / 1e9 if machine.is_gpu else 0.0


# What it costs


def measure_machine(machine: Machine) -> dict[str, Any]:
    """Bytes per second of a large copy, read and written; the floors below are bytes over this."""
    source = torch.empty(2**30 if machine.is_gpu else 2**20, dtype=torch.uint8, device=machine.device)
    copy = torch.empty_like(source)
    machine.bandwidth = 2 * source.numel() / machine.seconds(lambda: copy.copy_(source))
    return {"bandwidth_tb_s": machine.bandwidth / 1e12}


def measure_kernels(machine: Machine) -> dict[str, Any]:
    """Each kernel against its reference in bfloat16: the largest difference, and both times."""
    generator = torch.Generator(machine.device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=machine.device, dtype=torch.bfloat16)

    found: dict[str, Any] = {}
    vocab = 151936 if machine.is_gpu else 500
    for rows in (10, 64):
        logits = random(1, rows, vocab)
        found[f"most_likely, {rows} rows"] = _pair(
            machine,
            lambda logits=logits: kernels.most_likely(logits, vocab, 7),
            lambda logits=logits: reference.most_likely(logits, vocab, 7),
        )
    for rows, slots in ((1, 1024), (32, 1024), (32, 4096), (64, 4096)):
        slots = slots if machine.is_gpu else 96
        query, key, value = random(1, 12, rows, 128), random(1, 2, slots, 128), random(1, 2, slots, 128)
        limit = torch.randint(1, slots + 1, (1, rows), generator=generator, device=machine.device)
        values = (query, key, value, limit)
        found[f"attention, {rows} rows, {slots} slots"] = _pair(
            machine,
            lambda values=values: (kernels.attention(*values),),
            lambda values=values: (reference.attention(*values),),
        )
    if machine.is_gpu:
        found["accept"] = _accept_pair(machine)
    return found


def _accept_pair(machine: Machine) -> dict[str, Any]:
    from hf_failfast.kernels.triton_acceptance import accept

    generator = torch.Generator(machine.device).manual_seed(1)
    tokens = torch.randint(3, (8, 31), generator=generator, device=machine.device)
    draft = torch.where(torch.rand(8, 30, generator=generator, device=machine.device) < 0.9, tokens[:, :-1], 5)
    ones = torch.ones(8, dtype=torch.long, device=machine.device)
    arguments = (draft, 30 * ones, tokens, 100 * ones, 0 * ones, 500, torch.tensor([2], device=machine.device))
    return _pair(machine, lambda: accept(*arguments), lambda: reference.accept(*arguments))


def _pair(machine: Machine, ours: Callable[[], Any], theirs: Callable[[], Any]) -> dict[str, Any]:
    differences = [
        (a.double() - b.double()).abs().max().item() for a, b in zip(ours(), theirs(), strict=True) if a.numel()
    ]
    return {
        "largest_difference": max(differences),
        "kernel_us": 1e6 * machine.seconds(ours),
        "torch_us": 1e6 * machine.seconds(theirs),
    }


@contextmanager
def sdpa_only() -> Iterator[None]:
    """Captures take the model's own attention instead of the kernel."""
    usable = slot_attention.is_usable
    slot_attention.is_usable = lambda model: False
    try:
        yield
    finally:
        slot_attention.is_usable = usable


def measure_passes(machine: Machine, model: PreTrainedModel) -> dict[str, Any]:
    """Milliseconds of a pass behind 1,024 tokens, by number of rows: eager, captured with SDPA, captured with the
    kernel, and the memory floor."""
    found: dict[str, Any] = {}
    for rows in (1, 16, 32, 64) if machine.is_gpu else (1, 16):
        found[f"{rows} rows"] = {"floor_ms": 1e3 * _floor(machine, model, rows)} | {
            f"{kind}_ms": 1e3 * machine.seconds(_pass(machine, model, kind, rows))
            for kind in ("eager", "captured_sdpa", "captured")
        }
    return found


def _runner(machine: Machine, model: PreTrainedModel, kind: str) -> EagerRunner:
    return EagerRunner(model) if kind == "eager" else CudaGraphRunner(model, (), KeptGraphs(machine.graphs()))


def _pass(machine: Machine, model: PreTrainedModel, kind: str, rows: int) -> Callable[[], torch.Tensor]:
    """A forward of `rows` tokens behind a filled context, which forgets them again."""
    runner = _runner(machine, model, kind)
    cache = runner.new_cache(machine.context + graph_runner.MAX_WIDTH)
    with torch.no_grad():
        runner(torch.zeros(1, machine.context, dtype=torch.long, device=machine.device), cache, 1)
    ids = torch.zeros(1, rows, dtype=torch.long, device=machine.device)

    @torch.no_grad()
    def run() -> torch.Tensor:
        cache.rollback(machine.context)
        return runner(ids, cache, rows)

    if kind == "captured_sdpa":
        with sdpa_only():
            run()
    run()
    if isinstance(runner, CudaGraphRunner):
        assert runner.replays, runner.kept.problem
    return run


def _floor(machine: Machine, model: PreTrainedModel, rows: int) -> float:
    """Seconds to read all weights that a pass reads, and K/V of the context, at the measured bandwidth."""
    config = model.config
    weights = sum(tensor.numel() for name, tensor in model.named_parameters() if "embed_tokens" not in name)
    if config.tie_word_embeddings:
        weights += model.get_input_embeddings().weight.numel()
    head_dim = config.hidden_size // config.num_attention_heads
    states = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * (machine.context + rows)
    return (weights + states) * model.dtype.itemsize / machine.bandwidth


def measure_rounds(machine: Machine, drafter: PreTrainedModel, target: PreTrainedModel, kind: str) -> dict[str, float]:
    """Milliseconds of a round, host included: the drafter's passes of 32 rows with confidence and decision, the verify
    pass of 16 rows with acceptance, one host read after each; and what that is over plain decoding at the paper's
    tokens per round."""
    draft, verify, plain = (
        _pass(machine, model, kind, rows) for model, rows in ((drafter, 32), (target, 16), (target, 1))
    )
    eos = torch.tensor([3], device=machine.device)
    drafted = torch.zeros(1, 15, dtype=torch.long, device=machine.device)

    def round_of(passes: int) -> None:
        for _ in range(passes):
            ids, confidence = kernels.most_likely(draft()[:, :10], drafter.config.vocab_size, 7)
            reference.chunk_decision(ids, confidence, 0.45, eos).tolist()
        tokens = verify().argmax(dim=-1)
        matches = (tokens[:, :-1] == drafted).long().cumprod(dim=1).sum(dim=1)
        torch.cat([matches[:, None], tokens], dim=1).tolist()

    token = machine.seconds(lambda: plain().argmax(dim=-1).tolist())
    found = {"plain_token_ms": 1e3 * token}
    for passes in (1, 2, 3):
        seconds = machine.seconds(lambda passes=passes: round_of(passes))
        found[f"round_ms, {passes} passes"] = 1e3 * seconds
        found[f"over_plain, {passes} passes"] = TOKENS_PER_ROUND * token / seconds
    return found


def measure_pair(machine: Machine, drafter: PreTrainedModel, name: str) -> dict[str, Any]:
    """Passes of a target; rounds with the drafter over plain decoding of the same kind, and over eager decoding."""
    target = machine.model(name)
    found = {"passes": measure_passes(machine, target)}
    rounds = {kind: measure_rounds(machine, drafter, target, kind) for kind in ("eager", "captured")}
    eager = rounds["eager"]["plain_token_ms"]
    for passes in (1, 2, 3):
        milliseconds = rounds["captured"][f"round_ms, {passes} passes"]
        rounds["captured"][f"over_eager_plain, {passes} passes"] = TOKENS_PER_ROUND * eager / milliseconds
    return found | {"rounds at 6.55 tokens": rounds}


def measure_liger(machine: Machine, drafter: PreTrainedModel) -> dict[str, Any]:
    """The drafter's passes with Liger's fused norms, SwiGLU and RoPE (`pip install liger-kernel`)."""
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2

    apply_liger_kernel_to_qwen2(fused_linear_cross_entropy=False, model=drafter)
    return measure_passes(machine, drafter)


def measure_smollm2(machine: Machine) -> dict[str, Any]:
    """The demo's pair with its real weights: tokens per second of plain decoding, eager and captured drafting."""
    from hf_failfast.showcase import DEMO_PROMPTS, encode_prompt
    from hf_failfast.smollm2 import load_smollm2

    target, tokenizer = load_smollm2(torch.bfloat16)
    target.to(machine.device)
    prompts = [encode_prompt(tokenizer, prompt).to(machine.device) for prompt in DEMO_PROMPTS]
    settings = {"max_new_tokens": 256, "do_sample": False}
    calls: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"plain": lambda ids: target.generate(ids, **settings)}
    for name in ("eager", "auto"):
        drafter = hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER, runner=name)
        calls[name] = lambda ids, drafter=drafter: target.generate(
            ids, assistant_model=drafter, custom_generate="hf_failfast", **settings
        )
    found: dict[str, Any] = {}
    for name, call in calls.items():
        for ids in prompts:  # captures
            call(ids)
        start = perf_counter()
        tokens = sum(call(ids).shape[1] - ids.shape[1] for ids in prompts)
        machine.wait()
        found[f"{name}_tokens_per_second"] = tokens / (perf_counter() - start)
    return found


def sections(machine: Machine) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "machine", lambda: measure_machine(machine)
    yield "kernels", lambda: measure_kernels(machine)
    yield "generations", lambda: compare_generations(machine)
    drafter = functools.cache(lambda: machine.model("1.5B"))
    yield "1.5B", lambda: measure_passes(machine, drafter())
    for name in ("7B", "14B", "32B") if machine.is_gpu else ("7B",):
        yield name, lambda name=name: measure_pair(machine, drafter(), name)
    if machine.is_gpu:
        yield "smollm2", lambda: measure_smollm2(machine)
        yield "1.5B, Liger", lambda: measure_liger(machine, drafter())


def main(
    budget_seconds: Annotated[float, typer.Option(help="No section starts later than this.")] = 540.0,
    cpu_check: Annotated[bool, typer.Option(help="Tiny shapes on the CPU: whether the script works.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where to store the result.")] = None,
) -> None:
    device = torch.device("cpu" if cpu_check or not torch.cuda.is_available() else "cuda")
    machine = Machine(device, perf_counter() + budget_seconds)
    report: dict[str, Any] = provenance(device)
    for name, section in sections(machine):
        if perf_counter() > machine.deadline:
            report[name] = {"skipped": f"more than {budget_seconds} s had passed"}
            continue
        start = perf_counter()
        try:
            report[name] = section()
        except Exception as error:
            report[name] = {"error": f"{type(error).__name__}: {error}", "where": traceback.format_exc(limit=-3)}
        report[name]["seconds"] = perf_counter() - start
        print(name, json.dumps(report[name], indent=1), flush=True)
        gc.collect()
        if machine.is_gpu:
            torch.cuda.empty_cache()
    if machine.is_gpu or output is not None:
        hardware = re.sub(r"\W+", "-", torch.cuda.get_device_name() if machine.is_gpu else "cpu").lower()
        path = output or RESULTS / f"gpu-{hardware}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    typer.run(main)
