"""Targets that are quantised, split, compiled, adapted, or called by a pipeline."""

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from conftest import REPOSITORY, drafter, failfast, plain, prompt, saved_drafter, shared_drafter, target, tiny_model
from family_support import DATA
from scripted import ScriptedDrafter
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, pipeline

import hf_failfast


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target of three layers, as a checkpoint."""
    path = tmp_path_factory.mktemp("target")
    tiny_model("llama", hidden_size=64, intermediate_size=128, num_hidden_layers=3).save_pretrained(path)
    return path


def load(folder: Path, **options: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def assert_lossless(model: Any) -> None:
    """The text is plain `generate`'s with drafts accepted to any length, and with a real drafter."""
    input_ids = prompt(20)
    reference = plain(model, input_ids, max_new_tokens=30)
    assert torch.equal(
        failfast(model, input_ids, ScriptedDrafter(reference, [3, 0, 10, 1]), max_new_tokens=30), reference
    )
    assert torch.equal(failfast(model, input_ids, drafter("canvas_shift", "qwen2"), max_new_tokens=30), reference)


def quantised(folder: Path, **options: Any) -> PreTrainedModel:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return load(folder, quantization_config=BitsAndBytesConfig(**options))


def compiled(folder: Path) -> Any:
    model = load(folder)
    model.forward = torch.compile(model.forward, backend="eager")  # traced as usual, run without a C++ compiler
    return model


def offloaded(folder: Path) -> PreTrainedModel:
    devices = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.layers.2": "disk",
    }
    devices |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    return load(folder, device_map=devices, offload_folder=tempfile.mkdtemp(prefix="offload-"))


TARGETS: dict[str, Callable[[Path], Any]] = {
    "bitsandbytes, 4 bits (NF4)": lambda folder: quantised(
        folder, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    ),
    "bitsandbytes, 8 bits": lambda folder: quantised(folder, load_in_8bit=True, llm_int8_threshold=0.0),
    "`device_map`, layers offloaded to disk": offloaded,
    '`device_map="auto"`': lambda folder: load(folder, device_map="auto"),
    "`torch.compile`d forward": compiled,
    "`torch.compile`d module": lambda folder: torch.compile(load(folder), backend="eager"),
}


COMPILED = "`torch.compile`d forward"  # traces the loop's many shapes


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.exhaustive if kind == COMPILED else ()) for kind in TARGETS]
)
def test_targets(kind: str, folder: Path) -> None:
    """Every kind of target keeps its own text."""
    assert_lossless(TARGETS[kind](folder))


Keeps = Callable[[PreTrainedModel, list[torch.Tensor]], Any]
WATCHED: dict[str, Keeps] = {
    "forward hook": lambda model, kept: model.model.layers[0].register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    ),
    "pre-hook": lambda model, kept: model.model.norm.register_forward_pre_hook(
        lambda module, inputs: kept.append(inputs[0])
    ),
    "a method as a hook": lambda model, kept: model.model.norm.register_forward_pre_hook(Keeper(kept).keep),
    "global hook": lambda model, kept: torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: kept.append(output) if isinstance(output, torch.Tensor) else None
    ),
    "a forward of one's own": lambda model, kept: setattr(
        model.lm_head, "forward", Keeper(kept).around(model.lm_head.forward)
    ),
}


class Keeper:
    """Keeps tensors in a list."""

    def __init__(self, kept: list[torch.Tensor]) -> None:
        self.kept = kept

    def keep(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.kept += inputs[:1]

    def around(self, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def watched(hidden: torch.Tensor) -> torch.Tensor:
            self.kept.append(forward(hidden))
            return self.kept[-1]

        return watched


@pytest.mark.parametrize("kind", WATCHED)
def test_activations_that_hooks_keep(kind: str) -> None:
    """What the caller's hooks on a target keep of a drafted text can be used in autograd."""
    model, kept = copy.deepcopy(target("llama")), list[torch.Tensor]()
    reference = plain(model, prompt(9), max_new_tokens=12)
    handle = WATCHED[kind](model, kept)
    try:
        output = failfast(model, prompt(9), ScriptedDrafter(reference, [3, 0, 10, 1]), max_new_tokens=12)
    finally:
        if handle is not None:
            handle.remove()
    assert torch.equal(output, reference)
    assert kept and not any(tensor.is_inference() for tensor in kept)
    probe = torch.nn.Parameter(torch.ones(kept[-1].shape[-1]))
    (kept[-1] * probe).sum().backward()


def dflash_target() -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(DATA / "dflash/case_1/target", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


OFFLOADED: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[], Any]]] = {
    "by path": (lambda: target("llama"), lambda: saved_drafter("canvas_shift", "llama")),
    "shared": (lambda: target("llama"), lambda: copy.deepcopy(shared_drafter())),
    "shared, fewer tokens": (lambda: target("llama"), lambda: copy.deepcopy(shared_drafter(3))),
    "dflash": (dflash_target, lambda: hf_failfast.load_drafter(DATA / "dflash/case_1/checkpoint")),
}


@pytest.mark.parametrize("kind", OFFLOADED)
def test_drafters_of_an_offloaded_target(kind: str) -> None:
    """A target whose weights are on `meta` between forwards keeps its text, and its drafter drafts as for any other:
    one named by path, and one that borrows the target's embedding and head."""
    make_target, make_drafter = OFFLOADED[kind]
    model = make_target()
    options: dict[str, Any] = {"max_new_tokens": 24, "return_dict_in_generate": True, "drafter_errors": "raise"}
    input_ids = prompt(9) % model.config.vocab_size
    expected = failfast(model, input_ids, make_drafter(), **options)
    away = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert away.device.type == "meta"
    proposer = make_drafter()
    for _ in range(2):  # a drafter that lost its weights in the first call would fail in the second
        output = failfast(away, input_ids, proposer, **options)
        assert torch.equal(output.sequences, expected.sequences)
        assert output.speculation.records == expected.speculation.records
    assert expected.speculation.drafted > 0


def test_int8_with_outliers_is_warned_of(folder: Path) -> None:
    """Warns of 8-bit targets with outlier columns: their logits depend on the number of rows of a forward."""
    model = quantised(folder, load_in_8bit=True)  # bitsandbytes' default threshold
    with pytest.warns(UserWarning, match="`llm_int8_threshold`=6.0.*`BitsAndBytesConfig"):
        failfast(model, prompt(5), drafter("canvas", "qwen2"), max_new_tokens=2)


def test_adapters_switched_between_calls(folder: Path) -> None:
    """Each call follows the active adapter; nothing of an earlier one stays."""
    lora = pytest.importorskip("peft").LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = load(folder)
    bare = plain(model, prompt(20), max_new_tokens=30)
    texts = []
    for name in ("first", "second"):
        model.add_adapter(lora, name)
    for name in ("first", "second", "first"):
        model.set_adapter(name)
        assert_lossless(model)
        texts.append(plain(model, prompt(20), max_new_tokens=30))
    assert torch.equal(texts[0], texts[2]) and not torch.equal(texts[0], texts[1])
    model.disable_adapters()
    assert_lossless(model)
    assert torch.equal(plain(model, prompt(20), max_new_tokens=30), bare)


def test_a_peft_model(folder: Path) -> None:
    """A `PeftModel` generates with the drafter and keeps its text."""
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    assert_lossless(peft.get_peft_model(load(folder), lora))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_drafter_of_another_dtype(dtype: torch.dtype) -> None:
    """A drafter in another dtype than the target's drafts for it."""
    other = hf_failfast.load_drafter(saved_drafter("canvas_shift"), dtype=dtype)
    reference = plain(target("qwen2"), prompt(20), max_new_tokens=30)
    assert torch.equal(failfast(target("qwen2"), prompt(20), other, max_new_tokens=30), reference)


def test_pipeline(tokenizer: PreTrainedTokenizerFast) -> None:
    """A pipeline takes the drafter with the call (`pipeline()` takes `assistant_model` for an autoregressive one)."""
    pipe = pipeline("text-generation", model=target("qwen2"), tokenizer=tokenizer)
    text = tokenizer.decode(prompt(12)[0])
    expected = pipe(text, max_new_tokens=20, do_sample=False)
    other = drafter("canvas_shift", "qwen2")
    assert (
        pipe(text, max_new_tokens=20, do_sample=False, custom_generate="hf_failfast", assistant_model=other)
        == expected
    )


@pytest.mark.exhaustive
def test_tensor_parallel(folder: Path, tmp_path: Path) -> None:
    """The two ranks of a split target write the same text and end."""
    (tmp_path / "target").symlink_to(folder)
    (tmp_path / "drafter").symlink_to(saved_drafter("canvas_shift"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(REPOSITORY / "tests" / "support" / "tensor_parallel_run.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},  # the same copy of the package as here
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-0", "done-1"]
