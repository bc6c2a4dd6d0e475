"""Packed linear layers give the same text, and leave the model's weights as they were, during and after."""

import copy
import io
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, shared_drafter, tiny_model
from torch import nn
from transformers import PreTrainedModel

from hf_failfast import prepack
from hf_failfast.decoding import round_costs as costs_module
from hf_failfast.engine.cpu import packed_weights as prepacking
from hf_failfast.engine.cpu.packed_weights import PackedLinear, is_prepacked

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"), reason="torch was built without oneDNN"
)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each product with a packed weight."""
    rows = []
    multiply = prepacking._multiply

    def counted(input: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(input.shape[-2])
        return multiply(input, *rest)

    monkeypatch.setattr(prepacking, "_multiply", counted)
    return rows


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    return model(prompt(9) if ids is None else ids).logits


def is_plain(model: nn.Module) -> bool:
    return not any(type(module) is PackedLinear or "_packed" in vars(module) for module in model.modules())


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_text(model_type: str, is_tied: bool, products: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every linear layer uses its packed weight, packed once, and drafted and plain texts stay the same, with biases
    and for batches."""
    model = tiny_model(model_type, tie_word_embeddings=is_tied)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    proposer = drafter("canvas_shift", "qwen2")
    texts = [plain(model, prompt(20), max_new_tokens=40)]
    with prepack(model, proposer):
        products.clear()
        monkeypatch.setattr(prepacking, "_pack", None)
        texts.append(plain(model, prompt(20), max_new_tokens=40))
        num_linears = sum(isinstance(module, nn.Linear) for module in model.modules())
        assert len(products) == 40 * num_linears
        texts.append(failfast(model, prompt(20), proposer, max_new_tokens=40))
        texts.append(failfast(model, torch.cat([prompt(20)] * 2), proposer, max_new_tokens=40)[1:])
    assert is_plain(model) and not is_prepacked(proposer)
    assert all(torch.equal(text, texts[0]) for text in texts)


@pytest.mark.parametrize("every", [None, 2])
def test_a_drafter_that_borrows_the_head(every: int | None) -> None:
    """A drafter that borrows the target's head, whole or reduced, is packed and drafts the same."""
    model, proposer = tiny_model("llama"), copy.deepcopy(shared_drafter(every))
    reference = plain(model, prompt(20), max_new_tokens=40)
    expected = failfast(model, prompt(20), proposer, max_new_tokens=40, return_dict_in_generate=True)
    with prepack(model, proposer):
        assert is_prepacked(proposer)
        output = failfast(model, prompt(20), proposer, max_new_tokens=40, return_dict_in_generate=True)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.accepted == expected.speculation.accepted > 0


def test_bfloat16() -> None:
    """Packs bf16 layers; their results differ by bf16 rounding at most."""
    model = tiny_model("llama").bfloat16()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("the processor has no bf16 products")
    expected = logits(model)
    with prepack(model):
        assert is_prepacked(model)
        assert (logits(model) - expected).abs().max() <= 2**-6 * expected.abs().max()


def change_in_place(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(-1)


def step(model: PreTrainedModel) -> None:
    model(prompt(9)).logits.sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def replace_data(model: PreTrainedModel) -> None:
    """Replaces it twice: the second memory may be where the first was."""
    model.model.layers[0].mlp.up_proj.weight.data = model.model.layers[1].mlp.up_proj.weight.data.clone()
    model.to(torch.bfloat16).to(torch.float32)


CHANGES: dict[str, Callable[[PreTrainedModel], object]] = {
    "in place": change_in_place,
    "an optimizer's step": step,
    "load_state_dict": lambda model: model.load_state_dict(tiny_model("llama", seed=3).state_dict()),
    "load_state_dict, assign": lambda model: model.load_state_dict(
        tiny_model("llama", seed=3).state_dict(), assign=True
    ),
    "replaced data": replace_data,
    "another dtype": lambda model: model.to(torch.bfloat16),
    "a dtype that cannot be packed": lambda model: model.to(torch.float64),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights(change: Callable[[PreTrainedModel], object]) -> None:
    """After any change of weights, the packed model computes what an unpacked model with the same change does."""
    model, other = tiny_model("llama"), tiny_model("llama")
    with prepack(model):
        before = logits(model)
        for each in (model, other):
            change(each)
        assert not torch.equal(logits(model), before)
        torch.testing.assert_close(logits(model), logits(other), rtol=1e-4, atol=1e-4)


def test_training_goes_on() -> None:
    """A packed model has the gradients of an unpacked one."""
    model, other = tiny_model("llama"), tiny_model("llama")
    with prepack(model):
        for each in (model, other):
            each(prompt(9)).logits.sum().backward()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_weights_stay_where_they_are(tmp_path: Any) -> None:
    """Packing and undoing it keep parameters and their memory; a packed model saves the same bytes."""
    model = tiny_model("llama", tie_word_embeddings=True)
    parameters = {name: (id(value), value.data_ptr()) for name, value in model.named_parameters()}
    model.save_pretrained(tmp_path / "plain")
    packed = prepack(model)
    model.save_pretrained(tmp_path / "packed")
    assert {name: (id(value), value.data_ptr()) for name, value in model.named_parameters()} == parameters
    files = [tmp_path / name / "model.safetensors" for name in ("plain", "packed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    packed.undo()
    assert is_plain(model)
    assert {name: (id(value), value.data_ptr()) for name, value in model.named_parameters()} == parameters


def test_copies_are_plain() -> None:
    """Copies and pickles of a packed model are unpacked and give the same logits."""
    model = tiny_model("llama")
    expected = logits(model)
    with prepack(model):
        logits(model)
        saved = io.BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        copies = [
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.load(saved, weights_only=False),
        ]
    for each in copies:
        assert is_plain(each)
        assert torch.equal(logits(each), expected)


def test_packed_twice() -> None:
    """Layers stay packed until their outermost block ends or is undone."""
    model, proposer = tiny_model("llama"), drafter("canvas_shift", "qwen2")
    outer = prepack(model)
    with prepack(model, proposer):
        outer_layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        assert is_prepacked(proposer)
    assert all(type(layer) is PackedLinear for layer in outer_layers)
    assert not is_prepacked(proposer)
    with prepack(model):
        outer.undo()
    outer.undo()
    assert is_plain(model)


def test_undo_of_a_layer_that_became_another() -> None:
    """A layer that was parametrised while packed keeps its class and parametrisation after the undo."""
    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.load_state_dict(layer.state_dict())
    with prepack(layer):
        for each in (layer, other):
            nn.utils.parametrizations.weight_norm(each).parametrizations.weight.original0.data.mul_(2)
    rows = torch.randn(3, 4)
    torch.testing.assert_close(layer(rows), other(rows))


def test_autocast() -> None:
    """Under autocast packed layers give the results of unpacked ones."""
    model = tiny_model("llama")
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(model)
        with prepack(model):
            assert torch.equal(logits(model), expected)


def test_compiled() -> None:
    """A packed layer compiles as a full graph and gives the same results."""
    layer = nn.Sequential(nn.Linear(8, 4))
    rows = torch.randn(3, 8)
    with torch.no_grad(), prepack(layer):
        found = torch.compile(layer, backend="eager", fullgraph=True)(rows)
        torch.testing.assert_close(found, layer(rows))


def test_adapters_stay_plain(caplog: pytest.LogCaptureFixture) -> None:
    """Layers of adapters stay unpacked, with one warning: merging changes weights through `.data` uncounted."""
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model, other = (peft.get_peft_model(tiny_model("llama"), lora) for _ in range(2))
    other.load_state_dict(model.state_dict())
    with prepack(model):
        assert "leaves layers as they are that it cannot pack: 12 Linear." in caplog.text
        assert [record.name for record in caplog.records].count(prepacking.__name__) == 1
        logits(model)
        for each in (model, other):
            each.merge_adapter()
        torch.testing.assert_close(logits(model), logits(other))


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "no linear layers": lambda: nn.Embedding(3, 3),
    "2 Linear": lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).half(),
    "1 Linear": lambda: nn.Linear(2, 2, device="meta"),
    "1 NonDynamicallyQuantizableLinear": lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2),
}


@pytest.mark.parametrize("found", REFUSED)
def test_nothing_to_pack(found: str) -> None:
    """Rejects models without a layer to pack, naming the layers that there are."""
    with pytest.raises(ValueError, match=f"but there are {found}"):
        prepack(REFUSED[found]())


def test_a_torch_without_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    with pytest.raises(ValueError, match="a CPU for which torch has oneDNN"):
        prepack(model)
    assert is_plain(model)


@pytest.mark.parametrize("num_rows", [1, 8])
def test_a_torch_whose_operators_do_something_else(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects private operators of torch whose results are off, and leaves the model unpacked."""
    model = tiny_model("qwen2")
    multiply = prepacking._multiply

    def wrong(input: torch.Tensor, *rest: Any) -> torch.Tensor:
        return multiply(input, *rest) * (1.001 if input.shape[0] == num_rows else 1)

    monkeypatch.setattr(prepacking, "_multiply", wrong)
    with pytest.raises(ValueError, match=f"`prepack`: torch .* packed weights .* off for {num_rows} rows, more than"):
        prepack(model)
    assert is_plain(model)


def test_costs_are_those_of_packed_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are measured anew when target or drafter are packed, and those before are used again after the undo."""
    calls = []
    monkeypatch.setattr(costs_module, "measure", lambda *args: calls.append(args) or len(calls))
    model, proposer = tiny_model("llama"), copy.deepcopy(drafter("canvas_shift", "qwen2"))
    found = [costs_module.measured_costs(model, proposer, 1, 50)]
    with prepack(model):
        found.append(costs_module.measured_costs(model, proposer, 1, 50))
        with prepack(proposer):
            found.append(costs_module.measured_costs(model, proposer, 1, 50))
    found.append(costs_module.measured_costs(model, proposer, 1, 50))
    assert found == [1, 2, 3, 1]
