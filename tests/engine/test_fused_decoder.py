"""The decoder that stands in for Llama-like layers in graphs: equal to the model's forward, in few launches, over the
model's own weights; and what it leaves to the model, by name.

Most tests run the definitions of its kernels, those with `interpreted` the kernels in Triton's interpreter.
"""

import copy
import gc
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, shared_drafter, target, tiny_model
from graph_support import Recorder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from triton_support import Launches
from triton_support import rounding as rounding

import hf_failfast
from hf_failfast.drafters import DiffusionDrafter
from hf_failfast.engine import kernels
from hf_failfast.engine.cuda import fused_decoder, graph_runner, llama_like
from hf_failfast.engine.cuda.fused_decoder import FusedDecoder
from hf_failfast.engine.cuda.graph_runner import CudaGraphRunner
from hf_failfast.engine.cuda.static_slots import CapturedForward, KeptGraphs, Shape
from hf_failfast.engine.kernels import reference
from hf_failfast.engine.runner import EagerRunner, Forward, raw_logits
from hf_failfast.engine.runner_pool import RunnerPool
from hf_failfast.engine.window import Sight, Window
from hf_failfast.policies.confidence import ConfidenceThreshold

# A family and what makes its layers differ from the smallest ones.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 64},
    "llama, one key head": {"num_key_value_heads": 1, "num_attention_heads": 3, "hidden_size": 24, "head_dim": 20},
    "llama, tied, scaled rotation": {
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
    },
    "mistral": {},
    "mistral, no window": {"sliding_window": None, "head_dim": 96},
    "qwen2": {},
    "qwen2, some windows": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3": {},
    "qwen3, 80 wide heads": {"head_dim": 80, "attention_bias": True},
}


def shaped(name: str, **options: Any) -> PreTrainedModel:
    """A tiny model of one of `SHAPES`, its norm weights random."""
    model = tiny_model(name.split(",")[0], **SHAPES[name] | options)
    generator = torch.Generator().manual_seed(7)
    for each in model.modules():
        if type(each).__name__.endswith("RMSNorm"):
            each.weight.data = torch.rand(each.weight.shape, generator=generator) + 0.5
    return model


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder is used without a GPU, with the definitions of its kernels."""
    monkeypatch.setattr(fused_decoder, "obstacle", llama_like.obstacle)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch, rounding: None) -> None:
    """The kernels run, in Triton's interpreter, except for the attention in bfloat16, which it does not know."""
    triton_attention = pytest.importorskip("hf_failfast.engine.kernels.triton_attention")
    monkeypatch.setattr(kernels, "is_fused", lambda device: True)

    def attention(query: torch.Tensor, *arguments: Any) -> torch.Tensor:
        chosen = reference if query.dtype == torch.bfloat16 else triton_attention
        result: torch.Tensor = chosen.attention(query, *arguments)
        return result

    monkeypatch.setattr(kernels, "attention", attention)


def graphed(original: DiffusionDrafter, graphs: Recorder | None = None) -> DiffusionDrafter:
    result = copy.copy(original)
    result.runners = RunnerPool("cuda_graphs", graphs or Recorder())
    return result


def decoders(used: DiffusionDrafter, model: Any) -> dict[str, FusedDecoder | str]:
    """What the graphs of target and drafter were captured with."""
    kept: dict[str, KeptGraphs] = used.runners._kept[model]
    assert not any(each.problem for each in kept.values())
    return {role: each.idle[0].decoder for role, each in kept.items()}


def inputs_of(num_rows: int, width: int, start: int, num_slots: int = 64, **shape: Any) -> CapturedForward:
    """Random inputs of a causal forward at `start`, all of whose tokens are read."""
    options = {"is_limited": False, "hidden_layers": (), "head": raw_logits, "num_states": None} | shape
    window = Window(prompt(num_rows * width).view(num_rows, width), [start] * num_rows, width)
    inputs = CapturedForward(Shape(width, num_slots, width, **options), window, torch.device("cpu"))
    inputs.fill(window)
    return inputs


def slots_of(model: PreTrainedModel, num_rows: int, num_slots: int = 64) -> list[Any]:
    config = model.config
    shape = (2, num_rows, config.num_key_value_heads, num_slots, model.model.layers[0].self_attn.head_dim)
    return [torch.zeros(shape, dtype=model.dtype).unbind() for _ in range(config.num_hidden_layers)]


def logits_by(decoder: FusedDecoder, inputs: CapturedForward, slots: list[Any]) -> torch.Tensor:
    with torch.no_grad():
        return decoder.forward(inputs, slots)[0]


def build(model: Any, num_slots: int = 64) -> FusedDecoder:
    decoder = fused_decoder.build(model, num_slots)
    assert isinstance(decoder, FusedDecoder), decoder
    return decoder


# Equal, in few launches


@pytest.mark.parametrize("name", SHAPES)
def test_launches(name: str, interpreted: None) -> None:
    """The kernels compute the model's forward to 1e-5 in at most 11 launches a layer and 5 for the rest."""
    model = shaped(name, num_hidden_layers=2 if name == "llama" else 1)
    decoder, inputs, slots = build(model), inputs_of(1, 4, 0), slots_of(model, 1)
    logits = logits_by(decoder, inputs, slots)
    with torch.no_grad():
        expected = model(inputs.input_ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

    whole = Launches.of(lambda: decoder.forward(inputs, slots))
    num_layers = len(decoder.layers)
    decoder.layers = []
    rest = Launches.of(lambda: decoder.forward(inputs, slots))
    assert 1 <= rest.total() <= 5, rest
    assert 1 <= whole.total() - rest.total() <= 11 * num_layers, whole - rest
    products = [sum(each[name] for name in ("mm", "addmm")) for each in (whole, rest)]
    assert products[0] - products[1] == 4 * num_layers
    assert Launches.of(lambda: model(inputs.input_ids, use_cache=False)).total() > 2 * whole.total()


@pytest.mark.parametrize("name", SHAPES)
def test_replays_equal_the_models_forward(name: str) -> None:
    """Replays give the model's logits, hidden states and slots to 1e-5: rows of different length, one token and many,
    given limits, some tokens read, after roll-backs too."""
    model, layers = shaped(name), (2, 0, 1, -1, 1)
    runner, eager = CudaGraphRunner(model, layers, KeptGraphs(Recorder())), EagerRunner(model, layers)
    caches = runner.new_cache(200, 3), eager.new_cache(200, 3)
    ids = prompt(300).view(3, 100)
    windows = [
        Window(ids[:, :40], [0, 0, 0], 1),
        Window(ids[:, 50:56], [40, 31, 22], 6),
        Window(ids[:, 60:61], [46, 35, 22], 1),
        Window(ids[:, 60:80], [41, 20, 19], torch.tensor([3, 7])),
        Window(ids[:, 20:25], [45, 30, 21], 2, Sight(torch.tensor([45, 30, 21])[:, None] + 5)),
    ]
    for window in windows:
        actual, expected = (each.run(window, cache) for each, cache in zip((runner, eager), caches, strict=True))
        assert_equal(actual, expected)
        for mine, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
            for row, end in enumerate(caches[0].lengths):
                torch.testing.assert_close(mine.keys[row, :, :end], theirs.keys[row, :, :end], rtol=1e-5, atol=1e-5)
    assert runner.replays == len(windows) - 1
    assert isinstance(runner._slots[caches[0]].decoder, FusedDecoder)


def assert_equal(actual: Forward, expected: Forward) -> None:
    torch.testing.assert_close(actual.outputs, expected.outputs, rtol=1e-5, atol=1e-5)
    assert actual.hidden_states is not None and expected.hidden_states is not None
    torch.testing.assert_close(actual.hidden_states, expected.hidden_states, rtol=1e-5, atol=1e-5)


def test_hidden_states_cost_no_launch() -> None:
    """Hidden states that are asked for are written where they belong in the first place."""
    model = shaped("llama", num_hidden_layers=3)
    decoder, slots = build(model), slots_of(model, 1)

    def count(*asked: int) -> int:
        inputs = inputs_of(1, 2, 0, hidden_layers=asked)
        return Launches.of(lambda: decoder.forward(inputs, slots)).total()

    counts = [count(), count(0, 2, 3), count(3, 0, 3)]
    assert counts == [counts[0], counts[0], counts[0] + 1]  # the same state twice is copied


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_rounding(name: str, interpreted: None) -> None:
    """In bfloat16 the kernels round where the model rounds: of a short text nearly all that the first layer stores is
    equal to the last bit, and the logits are close."""
    model = shaped(name).to(torch.bfloat16)
    decoder, inputs, slots = build(model), inputs_of(1, 5, 0), slots_of(model, 1)
    eager = EagerRunner(model)
    cache = eager.new_cache(64)
    (expected,) = eager.run(Window(inputs.input_ids, [0], 5), cache).outputs
    logits = logits_by(decoder, inputs, slots)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2**-6 * float(expected.abs().max()))
    for kind, states in enumerate((cache.layers[0].keys, cache.layers[0].values)):
        same = slots[0][kind][:, :, :5] == states[:, :, :5]
        assert same.float().mean() > 0.98


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_generation(name: str, dtype: torch.dtype) -> None:
    """Texts are those of plain `generate`; in bfloat16, where widths may matter, the eager runner's."""
    model = shaped(name).to(dtype)
    model_type = name.split(",")[0]
    options = {"confidence_threshold": 0.3, "chunk_length": 4, "max_draft_length": 12, "max_new_tokens": 30}
    original = drafter("canvas_shift", model_type)
    used = graphed(original)
    for length in (9, 20) if dtype == torch.float32 else (20,):
        eager = failfast(model, prompt(length), original, **options)
        assert torch.equal(failfast(model, prompt(length), used, **options), eager)
        if dtype == torch.float32:
            assert torch.equal(eager, plain(model, prompt(length), max_new_tokens=30))
    assert all(isinstance(each, FusedDecoder) for each in decoders(used, model).values())


@pytest.mark.parametrize("every", [None, 3])
def test_a_body_between_the_targets_embedding_and_head(every: int | None) -> None:
    """A drafter that borrows the target's embedding and head, whole or reduced, drafts as without graphs."""
    model, options = target("llama"), {"max_new_tokens": 40, "return_dict_in_generate": True}
    original = shared_drafter(every)
    used = graphed(original)
    expected, actual = (failfast(model, prompt(20), each, **options) for each in (original, used))
    assert torch.equal(actual.sequences, plain(model, prompt(20), max_new_tokens=40))
    assert actual.speculation.runner == "cuda_graphs: fused decoder"
    assert actual.speculation.records == expected.speculation.records
    assert all(isinstance(each, FusedDecoder) for each in decoders(used, model).values())


@pytest.mark.filterwarnings("ignore:The drafter was made for")
def test_the_bundled_drafter() -> None:
    """The bundled drafter's body is fused, and drafts what it drafts eagerly."""
    sizes = {"vocab_size": 49152, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    model = tiny_model("llama", **sizes, initializer_range=0.02, num_hidden_layers=1).to(torch.bfloat16)
    original = hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER)
    policy = ConfidenceThreshold(original.config)  # an object is not stopped by what rounds take
    used = graphed(original)
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "length_policy": policy}
    expected, actual = (failfast(model, prompt(20), each, **options) for each in (original, used))
    assert torch.equal(actual.sequences, expected.sequences)
    assert actual.speculation.records == expected.speculation.records
    assert all(isinstance(each, FusedDecoder) for each in decoders(used, model).values())


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_replayed_kernels_write_the_text(name: str, interpreted: None) -> None:
    """A text decoded token by token with replayed kernels is plain `generate`'s."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    model = shaped(name, num_hidden_layers=1, **sizes)
    expected = plain(model, prompt(5), max_new_tokens=6)
    runner = CudaGraphRunner(model, (), KeptGraphs(Recorder()))
    cache, ids = runner.new_cache(20), prompt(5)
    for start in (0, *range(5, 10)):
        (logits,) = runner.run(Window(ids[:, start:], [start], 1), cache).outputs
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(ids, expected)
    assert runner.replays == 5
    assert isinstance(runner._slots[cache].decoder, FusedDecoder)


# One weight, no second copy


def memories(*tensors: torch.Tensor) -> dict[int, int]:
    """Address and bytes of the distinct memories in which the tensors lie."""
    return {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}


def test_weights_stay_what_they_are(tmp_path: Path) -> None:
    """Merged weights take no more memory, and are saved, loaded, copied and cast as before."""
    model, other = shaped("qwen2"), tiny_model("qwen2", seed=1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    parameters, memory = dict(model.named_parameters()), sum(memories(*model.parameters()).values())
    build(model)
    projections = model.model.layers[0].self_attn
    assert len(memories(projections.q_proj.weight, projections.k_proj.weight, projections.v_proj.weight)) == 1
    assert sum(memories(*model.parameters()).values()) == memory
    assert all(parameters[name] is each for name, each in model.named_parameters())

    def assert_kept(weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> None:
        assert weights.keys() == state.keys()
        assert all(torch.equal(weights[name], state[name].to(dtype)) for name in state)

    assert_kept(model.state_dict())
    model.save_pretrained(tmp_path / "transformers")
    assert_kept(AutoModelForCausalLM.from_pretrained(tmp_path / "transformers").state_dict())
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    assert_kept(load_file(tmp_path / "weights.safetensors"))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert_kept(torch.load(tmp_path / "weights.pt"))
    other.load_state_dict(model.state_dict())
    assert_kept(other.state_dict())
    assert_kept(copy.deepcopy(model).state_dict())
    assert_kept(copy.deepcopy(model).to(torch.bfloat16).state_dict(), torch.bfloat16)
    (model(prompt(5)).logits.sum()).backward()
    assert all(each.grad is not None for each in model.parameters())


CHANGES = {
    "in place": lambda model: model.model.layers[0].self_attn.k_proj.weight.mul_(-1),
    "through data": lambda model: model.model.layers[1].mlp.up_proj.weight.data.mul_(0.5),
    "a bias": lambda model: model.model.layers[0].self_attn.q_proj.bias.add_(1.0),
    "a norm": lambda model: model.model.layers[0].input_layernorm.weight.mul_(-1),
    "loaded": lambda model: model.load_state_dict(tiny_model("qwen2", seed=3).state_dict()),
    "assigned": lambda model: model.load_state_dict(tiny_model("qwen2", seed=3).state_dict(), assign=True),
    "replaced": lambda model: setattr(
        model.model.layers[0].mlp.gate_proj, "weight", torch.nn.Parameter(torch.ones(64, 32) / 32)
    ),
    "cast and back": lambda model: model.to(torch.float64).to(torch.float32),
    "rebuilt": lambda model: setattr(model.model.layers[0], "mlp", tiny_model("qwen2", seed=3).model.layers[1].mlp),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_after_a_capture(change: str) -> None:
    """Whatever changes a weight, the next text is that of the changed model, still from the fused decoder."""
    model, used = shaped("qwen2"), graphed(drafter("canvas_shift"))
    first = failfast(model, prompt(20), used, max_new_tokens=30)
    with torch.no_grad():
        CHANGES[change](model)
    expected = plain(model, prompt(20), max_new_tokens=30)
    assert not torch.equal(first, expected) or change == "cast and back"
    assert torch.equal(failfast(model, prompt(20), used, max_new_tokens=30), expected)
    assert isinstance(decoders(used, model)["target"], FusedDecoder)


def test_weights_in_use_under_other_names() -> None:
    """Weights that someone else holds a view of stay where they are, so that its changes are still the model's."""
    model, used = shaped("qwen2"), graphed(drafter("canvas_shift"))
    held = model.model.layers[1].mlp.up_proj.weight.data
    failfast(model, prompt(20), used, max_new_tokens=20)
    assert decoders(used, model)["target"] == "other tensors share the memory of its projections"
    held.mul_(0.5)
    expected = plain(model, prompt(20), max_new_tokens=20)
    assert torch.equal(failfast(model, prompt(20), used, max_new_tokens=20), expected)


def test_two_drafters_of_one_target() -> None:
    """A second drafter finds the target's weights merged, and moves nothing under the first one's graphs."""
    model, one, two = shaped("qwen2"), graphed(drafter("canvas_shift")), graphed(drafter("block_shift"))
    expected = plain(model, prompt(20), max_new_tokens=20)
    assert torch.equal(failfast(model, prompt(20), one, max_new_tokens=20), expected)
    addresses = [each.data_ptr() for each in model.parameters()]
    assert torch.equal(failfast(model, prompt(20), two, max_new_tokens=20), expected)
    assert addresses == [each.data_ptr() for each in model.parameters()]


def test_released_with_the_graphs() -> None:
    """Without drafter and graphs nothing holds the weights but the model."""
    model, used = shaped("llama"), graphed(drafter("canvas_shift"))
    failfast(model, prompt(20), used, max_new_tokens=10)
    del used
    gc.collect()
    weight = model.model.layers[0].self_attn.o_proj.weight
    fresh = torch.empty(1)
    counts = [torch._C._storage_Use_Count(each.untyped_storage()._cdata) for each in (weight, fresh)]
    assert counts[0] == counts[1]


# What stays the model's


class Adapted(torch.nn.Linear):
    """A projection that adds something to its product, as adapters do."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states) + 0.1 * states.sum(dim=-1, keepdim=True)


def adapt(model: Any) -> None:
    model.model.layers[1].self_attn.k_proj.__class__ = Adapted


def replace_forward(model: Any) -> None:
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda states: -type(mlp).forward(mlp, states)


def share(model: Any) -> None:
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight


QWEN2 = "transformers.models.qwen2.modeling_qwen2"
REFUSED: dict[str, tuple[Any, str]] = {
    "an adapter": (adapt, "`layers.1.self_attn.k_proj` is a test_fused_decoder.Adapted"),
    "a replaced forward": (
        replace_forward,
        f"`layers.0.mlp` is a {QWEN2}.Qwen2MLP with another forward",
    ),
    "another activation": (
        lambda model: setattr(model.model.layers[0].mlp, "act_fn", torch.nn.GELU()),
        "`layers.0.mlp.act_fn` is a torch.nn.modules.activation.GELU",
    ),
    "another norm": (
        lambda model: setattr(model.model, "norm", torch.nn.LayerNorm(32)),
        "`norm` is a torch.nn.modules.normalization.LayerNorm",
    ),
    "float64": (lambda model: model.double(), "its weights are in torch.float64, its embedding in torch.float64"),
    "another embedding": (
        lambda model: setattr(model.model, "embed_tokens", torch.nn.Embedding(120, 32, max_norm=1.0)),
        "its embedding is a torch.nn.modules.sparse.Embedding",
    ),
    "a transposed weight": (
        lambda model: setattr(
            model.model.layers[0].self_attn.o_proj, "weight", torch.nn.Parameter(torch.rand(32, 32).t())
        ),
        "`layers.0.self_attn.o_proj.weight` is not an ordinary contiguous parameter in torch.float32",
    ),
    "a shared weight": (share, "`layers.1.mlp.up_proj.weight` is shared with another part"),
    "one bias of three": (
        lambda model: setattr(model.model.layers[0].self_attn.k_proj, "bias", None),
        "only some of the projections of a layer have a bias",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    """A model with one other part is captured as it is, and the reason is kept."""
    change, reason = REFUSED[what]
    model, used = shaped("qwen2").requires_grad_(False), graphed(drafter("canvas_shift"))
    change(model.eval())
    options = {"max_new_tokens": 20, "return_dict_in_generate": True}
    expected = failfast(model.eval(), prompt(20), drafter("canvas_shift"), **options)
    actual = failfast(model, prompt(20), used, **options)
    assert torch.equal(actual.sequences, expected.sequences)
    assert decoders(used, model)["target"] == reason
    assert expected.speculation.runner == "eager"
    assert actual.speculation.runner == f"cuda_graphs: the model's own layers ({reason})"


@pytest.mark.parametrize(
    ("model_type", "options", "reason"),
    [
        ("gemma2", {}, "its layers are not those of Llama, Mistral, Qwen2 or Qwen3"),
        ("olmo", {}, "its layers are not those of Llama, Mistral, Qwen2 or Qwen3"),
        ("gpt2", {}, "its layers are not those of Llama, Mistral, Qwen2 or Qwen3"),
        ("llama", {"hidden_act": "gelu"}, "`layers.0.mlp.act_fn` is a transformers.activations.GELUActivation"),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1000.0,
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                    "original_max_position_embeddings": 64,
                }
            },
            "its rotary embeddings depend on the length of the text",
        ),
    ],
)
def test_other_models(model_type: str, options: dict[str, Any], reason: str) -> None:
    """Other architectures and settings are named."""
    assert fused_decoder.build(tiny_model(model_type, **options), 64) == reason


def test_layers_with_hooks() -> None:
    """Layers whose forward calls hooks are the model's own, transformers' hooks that collect hidden states aside."""
    model = tiny_model("llama")
    model(prompt(4), output_hidden_states=True, output_attentions=False)
    build(model)
    model.model.layers[1].mlp.register_forward_pre_hook(lambda module, states: None)
    assert fused_decoder.build(model, 64) == "`layers.1` has hooks"


def test_what_a_gpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the kernels, in float32 and with another attention the model's own layers are captured."""
    monkeypatch.undo()
    model = tiny_model("llama")
    assert fused_decoder.build(model, 64) == "there are no Triton kernels on cpu"
    monkeypatch.setattr(kernels, "is_fused", lambda device: True)
    assert fused_decoder.build(model, 64) == "its attention stays its own: 'sdpa' in torch.float32"
    assert isinstance(fused_decoder.build(model.to(torch.bfloat16), 64), FusedDecoder)
    model.config._attn_implementation = "eager"
    assert fused_decoder.build(model, 64) == "its attention stays its own: 'eager' in torch.bfloat16"


@pytest.mark.parametrize("fault", ["raises", "computes something else"])
def test_a_failing_decoder(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the decoder cannot be captured, or computes something else, the model's own layers are, with a warning."""
    warnings: list[str] = []
    monkeypatch.setattr(graph_runner.logger, "warning", lambda text, *values: warnings.append(text % values))
    swiglu = kernels.swiglu

    def wrong(projected: torch.Tensor) -> torch.Tensor:
        if fault == "raises":
            raise RuntimeError("out of resource: shared memory")
        return swiglu(projected.flip(-1))

    monkeypatch.setattr(kernels, "swiglu", wrong)
    model, used = target("qwen2"), graphed(drafter("canvas_shift"))
    for _ in range(2):
        expected = plain(model, prompt(20), max_new_tokens=20)
        assert torch.equal(failfast(model, prompt(20), used, max_new_tokens=20), expected)
    assert len(warnings) == 2  # target and drafter, once each
    reason = "out of resource: shared memory" if fault == "raises" else "computes something else"
    assert all("without the fused decoder: RuntimeError: " in text and reason in text for text in warnings)


def test_lora_after_a_capture() -> None:
    """Adapters that are added after a capture, switched off, merged and removed are noticed: their layers are the
    model's own, and those of the model without them are fused again."""
    peft = pytest.importorskip("peft")
    model, used = shaped("qwen2"), graphed(drafter("canvas_shift"))

    def check() -> Any:
        expected = plain(model, prompt(20), max_new_tokens=20)
        assert torch.equal(failfast(model, prompt(20), used, max_new_tokens=20), expected)
        return expected

    bare = check()
    assert isinstance(decoders(used, model)["target"], FusedDecoder)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora).eval()
    text = check()
    assert not torch.equal(text, bare)
    assert decoders(used, model)["target"] == "`layers.0.self_attn.q_proj` is a peft.tuners.lora.layer.Linear"
    with adapted.disable_adapter():
        assert torch.equal(check(), bare)
    adapted.merge_adapter()
    assert torch.equal(check(), text)
    adapted.unmerge_adapter()
    adapted.unload()
    check()
    assert isinstance(decoders(used, model)["target"], FusedDecoder)


def test_every_kernel_has_its_definition() -> None:
    """A Triton kernel of the decoder and its definition take the same arguments."""
    triton_decoder = pytest.importorskip("hf_failfast.engine.kernels.triton_decoder")
    for name in ("embed", "add_norm", "rotate_and_store", "swiglu"):
        ours, theirs = (inspect.signature(getattr(module, name)) for module in (triton_decoder, reference))
        assert ours == theirs
