"""Compiled layers in graphs: plain `generate`'s text, fewer launches, compiled once, and given up without harm.

Inductor's backend for CPUs stands for that of a GPU, and the recorder for CUDA's graphs.
"""

import copy
import gc
import threading
from typing import Any

import pytest
import torch
import torch._inductor
from compile_support import counted_launches, no_compilation
from conftest import drafter, failfast, plain, prompt, tiny_model
from graph_support import Recorder
from scripted import ScriptedDrafter
from sessions import logits_of
from torch import nn
from triton_support import Launches

from hf_failfast.engine import kernels
from hf_failfast.engine.causal_lm import IS_OWN
from hf_failfast.engine.cuda import compiled_layers, slot_attention, static_slots
from hf_failfast.engine.cuda.compiled_layers import CompiledLayers
from hf_failfast.engine.cuda.graph_runner import CudaGraphRunner
from hf_failfast.engine.cuda.static_slots import KeptGraphs
from hf_failfast.engine.runner import EagerRunner
from hf_failfast.engine.runner_pool import RunnerPool
from hf_failfast.engine.window import Sight, Window

COMPILED = "compiled_graphs: compiled layers"
NEW = 24

# A family, how it differs from the smallest model, and the kinds of layers it has.
SLIDING = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16, "num_hidden_layers": 3}
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "gemma3_text": (SLIDING | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, 2),
    "phi3": ({}, 1),
    "olmo2": ({}, 1),
    "gpt2": ({}, 1),
    "gemma2": (SLIDING | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, 2),
    "falcon": ({"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}, 1),
    "stablelm": ({}, 1),
    "qwen2": ({}, 1),
    "cohere": ({}, 1),
    "glm4": ({"head_dim": 8}, 1),
    "gpt_neox": ({}, 1),
    "starcoder2": ({}, 1),
}
# The quick ones, and whether a C++ compiler builds what Inductor makes of them; without it what was traced runs.
QUICK = {"gemma3_text": False, "phi3": False, "olmo2": False, "gpt2": True}
CASES = [pytest.param(name, is_built, False, id=name) for name, is_built in QUICK.items()]
CASES += [pytest.param(name, True, True, id=f"{name}, all", marks=pytest.mark.exhaustive) for name in FAMILIES]


def model_of(name: str) -> Any:
    return tiny_model(name, **FAMILIES[name][0])


def script(graphs: Recorder | None = None) -> ScriptedDrafter:
    """A drafter without a model, whose targets are captured."""
    result = ScriptedDrafter(torch.empty(0), [3, 0, 10, 1])
    result.runners = RunnerPool("compiled_graphs", graphs or Recorder())
    return result


def write(model: Any, used: ScriptedDrafter) -> str:
    """Checks that the text is plain `generate`'s; returns how the target's forwards ran."""
    used.reference = plain(model, prompt(20), max_new_tokens=NEW)
    options = {"max_new_tokens": NEW, "chunk_length": 4, "max_draft_length": 12, "return_dict_in_generate": True}
    output = failfast(model, prompt(20), used, **options)
    assert torch.equal(output.sequences, used.reference)
    runner: str = output.speculation.runner
    return runner


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was traced runs operation by operation: a C++ compiler needs seconds for each layer."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)


def compiled_of(used: Any, model: Any) -> CompiledLayers:
    found = used.runners._kept[model]["target"].compiled
    assert isinstance(found, CompiledLayers)
    return found


def widths_of(used: Any, model: Any) -> set[int]:
    """The numbers of tokens for which forwards are captured."""
    return {shape.width for shape in used.runners._kept[model]["target"].idle[0].forwards}


def launches_of_a_layer(model: Any) -> int:
    """What the first decoder layer launches as it is, without a cache."""
    launches, counts = Launches(), []
    layer = compiled_layers._stack(model)[1][0]
    hooks = [
        layer.register_forward_pre_hook(lambda *_: counts.append(launches.counts.total())),
        layer.register_forward_hook(lambda *_: counts.append(launches.counts.total())),
    ]
    with torch.no_grad(), launches:
        model(prompt(9), use_cache=False)
    for hook in hooks:
        hook.remove()
    return counts[1] - counts[0]


@pytest.mark.parametrize(("name", "is_built", "has_all_widths"), CASES)
def test_generation(name: str, is_built: bool, has_all_widths: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are plain `generate`'s; one artifact serves all layers of a kind; a second call compiles nothing."""
    if not has_all_widths:
        monkeypatch.setattr(static_slots, "_round_up", lambda number: 16)
    model, used = model_of(name), script()
    with counted_launches(is_built) as launches:
        assert write(model, used) == COMPILED
    assert len(compiled_of(used, model).artifacts) == FAMILIES[name][1] * len(widths_of(used, model))
    assert launches
    if name in QUICK:  # LayerNorm is one launch as it is: elsewhere there is less to merge
        assert max(launches) < 0.7 * launches_of_a_layer(model)
    with no_compilation():
        assert write(model, used) == COMPILED


def test_replays_equal_the_eager_forward(interpreted: None) -> None:
    """One artifact a number of tokens serves every length of the text and of the slots; hidden states, given limits,
    rows of different length, roll-backs too."""
    model, layers = model_of("olmo2"), (2, 0, 1, -1)
    compiled = CompiledLayers()
    ids = prompt(1200).view(2, 600)
    eager = EagerRunner(model, layers)
    for capacity in (100, 500):
        runner = CudaGraphRunner(model, layers, KeptGraphs(Recorder(), compiled))
        caches = runner.new_cache(capacity, 2), eager.new_cache(capacity, 2)
        far = capacity - 60
        windows = [
            Window(ids[:, :far], [0, 0], 1),
            Window(ids[:, 50:56], [far, far - 9], 6),
            Window(ids[:, 60:61], [far + 6, far - 9], 1),
            Window(ids[:, 60:70], [far, 20], torch.tensor([3, 7])),
            Window(ids[:, 20:25], [far + 4, 21], 2, Sight(torch.tensor([far + 4, 21])[:, None] + 5)),
        ]
        for window in windows:
            with torch.no_grad():
                runs = [each.run(window, cache) for each, cache in zip((runner, eager), caches, strict=True)]
            actual, expected = runs
            torch.testing.assert_close(actual.outputs, expected.outputs, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(actual.hidden_states, expected.hidden_states, rtol=1e-4, atol=1e-4)
        assert runner.replays == len(windows) - 1
        assert runner.description == COMPILED, compiled.failure
    assert len(compiled.artifacts) == 2


def launches_of(model: Any, rows: int) -> list[int]:
    """Checks that replays with compiled layers equal eager forwards; returns what each kind of layer would launch."""
    compiled = CompiledLayers()
    runner, eager = CudaGraphRunner(model, (), KeptGraphs(Recorder(), compiled)), EagerRunner(model)
    cache, expected_cache = runner.new_cache(100), eager.new_cache(100)
    with torch.no_grad(), counted_launches(is_built=False) as launches:
        for count in (40, rows, rows):
            actual = logits_of(runner, prompt(count), cache, 1)
            expected = logits_of(eager, prompt(count), expected_cache, 1)
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert runner.description == COMPILED, compiled.failure
    assert len(launches) == len(compiled.artifacts)
    return launches


def test_with_the_attention_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attention kernel is a call of its own in a compiled layer, sliding windows included. Nothing is
    copied for it."""
    model = tiny_model("gemma3_text", **FAMILIES["gemma3_text"][0] | {"num_key_value_heads": 4})  # none is repeated
    with_sdpa = launches_of(model, 9)
    monkeypatch.setattr(slot_attention, "is_usable", lambda model: True)
    calls: list[int] = []
    attention = kernels.attention
    monkeypatch.setattr(kernels, "attention", lambda *values: (calls.append(1), attention(*values))[1])
    with_kernel = launches_of(model, 9)
    assert len(calls) >= 2 * model.config.num_hidden_layers
    assert max(with_kernel) <= min(with_sdpa)


# Changed, shared, released


def test_changed_weights(interpreted: None) -> None:
    """Weights changed in place are read, replaced ones captured again, and neither is compiled again."""
    model = model_of("olmo2")
    used = script()
    write(model, used)
    changes = [
        lambda: model.model.layers[0].mlp.up_proj.weight.mul_(-1),
        lambda: setattr(model.model.layers[1].mlp, "up_proj", copy.deepcopy(model.model.layers[0].mlp.up_proj)),
    ]
    for change in changes:
        with torch.no_grad(), no_compilation():
            change()
            assert write(model, used) == COMPILED


class Adapted(nn.Linear):
    """A projection with an adapter of its own that can be switched off, as those of peft."""

    merged = False
    active_adapters = ("default",)

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__(inner.in_features, inner.out_features, bias=False)
        self.weight, self.addition = inner.weight, nn.Parameter(torch.rand_like(inner.weight))
        self.disable_adapters = False

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        result = super().forward(states)
        return result if self.disable_adapters else result + nn.functional.linear(states, self.addition)


def test_an_adapter(interpreted: None) -> None:
    """An adapter becomes part of the layers, and leaves them when it is switched off."""
    model = model_of("olmo2")
    used = script()
    write(model, used)
    texts = [used.reference]
    adapted = [Adapted(layer.self_attn.v_proj).eval() for layer in model.model.layers]
    for layer, projection in zip(model.model.layers, adapted, strict=True):
        layer.self_attn.v_proj = projection
    for is_off in (False, True, False):
        for projection in adapted:
            projection.disable_adapters = is_off
        assert write(model, used) == COMPILED
        texts.append(used.reference)
    assert torch.equal(texts[0], texts[2]) and not torch.equal(texts[0], texts[1])
    assert len(compiled_of(used, model).artifacts) == 3 * len(widths_of(used, model))


def test_switches_of_layers(interpreted: None) -> None:
    """A layer that differs from the others in a switch is compiled for itself."""
    model = model_of("olmo2")
    model.model.layers[1].self_attn.scaling *= 2
    used = script()
    write(model, used)
    assert len(compiled_of(used, model).artifacts) == 4


def test_threads(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share what is compiled, and each kind is compiled once."""
    traced: list[int] = []
    compiled = compiled_layers.compiled
    monkeypatch.setattr(compiled_layers, "compiled", lambda *of: (traced.append(1), compiled(*of))[1])
    model = model_of("olmo2")
    used = drafter("canvas_shift", "qwen2")
    used = copy.copy(used)
    used.runners = RunnerPool("compiled_graphs", Recorder())
    prompts = [prompt(20, seed) for seed in range(3)]
    expected = [plain(model, ids, max_new_tokens=NEW) for ids in prompts]
    results: dict[int, torch.Tensor] = {}

    def run(index: int) -> None:
        results[index] = failfast(model, prompts[index], used, max_new_tokens=NEW)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[index], ids) for index, ids in enumerate(expected))
    kept = used.runners._kept[model].values()
    assert len(traced) == sum(len(each.compiled.artifacts) for each in kept)
    assert not any(each.problem or each.compiled.failure for each in kept)


def test_released(interpreted: None) -> None:
    """With the drafter goes all that graphs and compiled layers need, and nothing but the model holds its weights."""
    recorder = Recorder()
    model = model_of("olmo2")
    used = script(recorder)
    write(model, used)
    assert len(recorder.alive) > 2
    compiled = compiled_of(used, model)
    assert compiled.artifacts
    del used
    gc.collect()
    assert len(recorder.alive) == 0
    weight = model.model.layers[0].self_attn.o_proj.weight
    counts = [torch._C._storage_Use_Count(each.untyped_storage()._cdata) for each in (weight, torch.empty(1))]
    assert counts[0] == counts[1]
    assert compiled.artifacts


# Given up


class NumberedMLP(nn.Module):
    """Something that computes by the number of its layer."""

    def __init__(self, inner: nn.Module, layer_idx: int) -> None:
        super().__init__()
        self.inner, self.layer_idx = inner, layer_idx

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(states) * (1.0 if self.layer_idx == 0 else -1.0)
        return result


def number(model: Any) -> None:
    for index, layer in enumerate(model.model.layers):
        layer.mlp = NumberedMLP(layer.mlp, index).eval()


def hold(model: Any) -> None:
    factor = torch.full((1,), 0.5)
    for layer in model.model.layers:
        layer.mlp.act_fn = Scale(factor).eval()


class Scale(nn.Module):
    """Something with a tensor that its module does not know."""

    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.held = [factor]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states * self.held[0]


def differ(model: Any) -> None:
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.scaling *= 1 + index


def replace(model: Any) -> None:
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda states: -type(mlp).forward(mlp, states)


def hook(model: Any) -> None:
    def halve(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output / 2

    setattr(halve, IS_OWN, True)
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(halve)


class Packed(nn.Parameter):
    """A weight that is not what it seems, as those of quantised layers."""


def pack(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.up_proj.weight = Packed(layer.mlp.up_proj.weight.detach())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (number, "what a layer computes depends on its number"),
        (hold, "Tensor"),
        (differ, "its 6 layers are of 6 kinds"),
        (replace, "a Olmo2MLP has another forward"),
        (hook, "a layer has hooks"),
        (pack, "a layer has or is given a Packed"),
    ],
)
def test_layers_that_cannot_be_compiled(change: Any, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """They are captured as they are, with one warning that says why, and the text is plain `generate`'s."""
    model = tiny_model("olmo2", num_hidden_layers=6)
    change(model)
    used = script()
    for _ in range(2):
        runner = write(model, used)
        assert runner.startswith("compiled_graphs: the model's own layers (") and reason in runner
    said = [
        record.getMessage() for record in caplog.records if "Capturing without compiled layers" in record.getMessage()
    ]
    assert len(said) == 1 and reason in said[0]


def test_a_failed_compilation(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A compiler that fails is asked once."""
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(compiled_layers, "compiled", fail)
    model = model_of("olmo2")
    used = script()
    for _ in range(2):
        runner = write(model, used)
        assert runner.endswith("; not compiled: RuntimeError: no compiler)")
    assert len(calls) == 1
    assert [record.getMessage() for record in caplog.records if "compiled layers" in record.getMessage()] == [
        "Capturing without compiled layers: RuntimeError: no compiler."
    ]


def test_other_runners_compile_nothing() -> None:
    """Only `compiled_graphs` compiles; on a CPU without graphs it says that they are missing, and runs eagerly."""
    model = model_of("olmo2")
    used = script()
    for name, graphs, expected in (
        ("cuda_graphs", Recorder(), "cuda_graphs: the model's own layers ("),
        ("compiled_graphs", None, "eager"),
    ):
        used.runners = RunnerPool(name, graphs)  # type: ignore[arg-type]
        with no_compilation():
            runner = write(model, used)
        assert runner.startswith(expected) and "compiled layers" not in runner
