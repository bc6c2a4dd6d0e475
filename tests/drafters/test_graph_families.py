"""Every family and every wrapper meets the graph recorder: captured, or eager for a reason that is stated."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_family_bidirectional as bidirectional
import test_family_blocks as blocks
import test_family_causal as causal
import test_family_lora as loras
import test_family_speculators as speculators
import torch
import transformers
from conftest import DRAFTERS, drafter, failfast, shared_drafter, target
from family_support import DATA, save_as, tiny_model
from graph_support import Recorder
from lora_support import save_lora
from test_family_cross_tokenizer import drafter_with, tokenizer
from training_support import PROVENANCE, random_examples, tiny_target
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import hf_failfast
from hf_failfast import Conversation, load_drafter
from hf_failfast.drafters import DiffusionDrafter, DraftRequest
from hf_failfast.drafters.checkpoints.families import FAMILIES
from hf_failfast.drafters.wrappers.cross_tokenizer import CrossTokenizerDrafter
from hf_failfast.engine.runner_pool import RunnerPool
from hf_failfast.training.config import TrainingConfig
from hf_failfast.training.trainer import Trainer

Pair = tuple[PreTrainedModel, DiffusionDrafter]

# By kind, why its drafter stays eager. All others are captured.
BIDIRECTIONAL = "a bidirectional drafter reads the whole text in every pass"
HEADS = "the drafter's own heads are read token by token"
LORAS = {"Uno": "uno-qwen3-8B", "I-DLM": "I-DLM-8B-lora-r128", "a LoRA of our own": "mine"}
EAGER = {
    "DFlash 2": HEADS,
    "DSpark": HEADS,
    "DFlash 2 of speculators": HEADS,
    "DSpark of speculators": HEADS,
    "CoDA-v0-Instruct": BIDIRECTIONAL,
    "bidirectional": BIDIRECTIONAL,
    "bidirectional_shift": BIDIRECTIONAL,
    "Dream / DiffuCoder": BIDIRECTIONAL,
    "LLaDA": BIDIRECTIONAL,
    "LLaDA, denoised in steps": BIDIRECTIONAL,
    "MDLM": BIDIRECTIONAL,
    "DiffuGPT": BIDIRECTIONAL,
    **dict.fromkeys(bidirectional.PUBLIC, BIDIRECTIONAL),
    "reference": "`mode='reference'` reads every pass on the host",
    "DiffusionGemma": "DiffusionGemma's canvas reads slots of any number",
    **dict.fromkeys(LORAS, "a LoRA drafts in the slots of the target's own graphs"),
}


def stored(folder: str, vocab_size: int, model_type: str = "qwen2", **options: Any) -> Callable[[Path], Pair]:
    """A family of the conformance data."""
    path = DATA / folder / "checkpoint"
    return lambda _: (tiny_model(model_type, vocab_size), load_drafter(path, dtype=torch.float32, **options))


def public(name: str, row: tuple[Any, ...]) -> Callable[[Path], Pair]:
    """A body of transformers under the public config keys of a family."""
    body, options, changes, *_ = row
    given = {} if "Stable" in name or name in causal.PUBLIC else {"mask_token_id": 127}

    def load(path: Path) -> Pair:
        folder = save_as(tiny_model(body, 128, seed=3, **options), path / name, changes)
        return tiny_model(body, 126, **options), load_drafter(folder, **given)

    return load


def bundled(_: Path) -> Pair:
    """A random target of the widths that the packaged drafter was trained for."""
    section = json.loads((hf_failfast.BUNDLED_DRAFTER / "config.json").read_text())
    keys = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
    sizes = {key: section[key] for key in keys} | {"num_hidden_layers": 1, "tie_word_embeddings": True}
    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes, **ids)).eval()
    found = load_drafter(hf_failfast.BUNDLED_DRAFTER, dtype=torch.float32)
    found.made_for = None
    return model, found


def trained(**options: Any) -> Callable[[Path], Pair]:
    """A drafter of the package's own trainer."""
    sizes: dict[str, Any] = {"steps": 1, "layers": (0, 3), "canvas_length": 4, "batch_size": 2, "anchors": 3}
    config = TrainingConfig(**sizes, **options)

    def load(path: Path) -> Pair:
        examples = random_examples(6), random_examples(2)
        Trainer(tiny_target(), examples, config, path, PROVENANCE).train()
        model = tiny_target()
        model.generation_config.eos_token_id = None
        return model, load_drafter(path, dtype=torch.float32)

    return load


def dflash(_: Path) -> Pair:
    folder = DATA / "dflash" / "case_1"
    model = AutoModelForCausalLM.from_pretrained(folder / "target", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model, load_drafter(folder / "checkpoint", dtype=torch.float32)


def block_drafter(case: str, write: Callable[[Path], Path] | None = None) -> Callable[[Path], Pair]:
    """A checkpoint of a block drafter for the target of a case: the case's own, or one that is written."""

    def load(path: Path) -> Pair:
        folder = DATA / "dflash" / case / "checkpoint" if write is None else write(path / "drafter")
        return speculators.target_of(case), load_drafter(folder, dtype=torch.float32)

    return load


def dspark_of_speculators(path: Path) -> Path:
    heads = {"weights": speculators.heads("gated"), "markov_rank": 6, "markov_head_type": "gated", "block_size": 7}
    return speculators.speculators("dspark", path, **heads)


def nemotron(path: Path) -> Pair:
    folder, body = causal.nemotron(path / "Nemotron-Labs-Diffusion-8B")
    return body, load_drafter(folder, dtype=torch.float32)


def dflash_assistant(path: Path) -> Pair:
    import test_family_dflash_assistant as native

    torch.manual_seed(0)
    config = transformers.MuseGlimmerAssistantConfig(**native.CONFIG)
    transformers.MuseGlimmerAssistantModel(config).save_pretrained(path)
    model = tiny_model("qwen3", native.VOCABULARY, num_hidden_layers=4, head_dim=8)
    return model, load_drafter(path, dtype=torch.float32)


def diffusion_gemma(path: Path) -> Pair:
    import test_family_diffusion_gemma as native

    torch.manual_seed(0)
    config = transformers.DiffusionGemmaConfig(
        text_config=native.TEXT, vision_config=native.VISION, canvas_length=16, image_token_id=119
    )
    transformers.DiffusionGemmaForBlockDiffusion(config).save_pretrained(path)
    return tiny_model("llama", 120), load_drafter(path)


def diffugpt(path: Path) -> Pair:
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 1, "n_positions": 64, "tie_word_embeddings": True}
    folder = bidirectional.save_diffugpt(bidirectional.tiny_gpt2(128, **sizes), path, with_config=False)
    return bidirectional.tiny_gpt2(126, **sizes), load_drafter(folder, mask_token_id=127, dtype=torch.float32)


def across_tokenizers(_: Path) -> Pair:
    ours, theirs = tokenizer(300, "the quick "), tokenizer(330, "lazy dogs jump ")
    inner = drafter_with(theirs, attention="causal_canvas", shift=1)
    return tiny_model("llama", len(ours)), CrossTokenizerDrafter(inner, ours, theirs)


def windowed(_: Path) -> Pair:
    found = copy.copy(drafter("canvas_shift"))
    found.window = 16
    return target("qwen2"), found


def lora_of(name: str) -> Callable[[Path], Pair]:
    def load(path: Path) -> Pair:
        model = target("llama")
        return model, load_drafter(save_lora(path / name, model), **loras.FORMATS[name][0])

    return load


KINDS: dict[str, Callable[[Path], Pair]] = {
    **{kind: lora_of(name) for kind, name in LORAS.items()},
    **{kind: lambda _, kind=kind: (target("qwen2"), copy.copy(drafter(kind))) for kind in DRAFTERS},
    "Fast-dLLM v2": stored("fastdllm_v2/case_1", 229, mask_token_id=229),
    "reference": stored("fastdllm_v2/case_1", 229, mask_token_id=229, mode="reference"),
    "SDAR / TraDo": stored("sdar/case_1", 240, "qwen3", mask_token_id=203, block_size=4),
    "Dream / DiffuCoder": stored("dream/case_1", 232),
    "LLaDA": stored("llada/case_1", 216, "llama"),
    "LLaDA, denoised in steps": stored("llada/case_1", 216, "llama", denoising_steps=2),
    "LLaDA, with a prefix cache": stored("llada/case_1", 216, "llama", prefix_block=8),
    "MDLM": stored("mdlm/case_1", 199, "gpt2"),
    "BD3-LM": stored("bd3lm/case_1", 199, "gpt2"),
    "DFlash": dflash,
    "DiffuGPT": diffugpt,
    **{name: public(name, row) for name, row in (bidirectional.PUBLIC | blocks.PUBLIC | causal.PUBLIC).items()},
    "DFlash 2": block_drafter("case_7"),
    "DSpark": block_drafter("case_6", lambda path: speculators.deepspec(path, "rnn")),
    "DFlash of speculators": block_drafter("case_6", lambda path: speculators.speculators("dflash", path)),
    "DFlash 2 of speculators": block_drafter("case_7", lambda path: speculators.speculators("dflash2", path)),
    "DSpark of speculators": block_drafter("case_6", dspark_of_speculators),
    "Nemotron-Labs-Diffusion": nemotron,
    "bundled": bundled,
    "shared layers": lambda _: (target("llama"), copy.copy(shared_drafter())),
    "shared layers, every third id": lambda _: (target("llama"), copy.copy(shared_drafter(3))),
    "trained": trained(draft_vocabulary=50),
    "trained, conditioned": trained(draft_vocabulary=50, conditioned=True),
    "trained, conditioned, whole vocabulary": trained(draft_vocabulary=0, conditioned=True),
    "Conversation": lambda _: (target("llama"), Conversation(copy.copy(shared_drafter(3)))),
    "another tokenizer": across_tokenizers,
    "a window": windowed,
}
if hasattr(transformers, "MuseGlimmerAssistantModel"):
    KINDS["DFlash assistant of transformers"] = dflash_assistant
if hasattr(transformers, "DiffusionGemmaForBlockDiffusion"):
    KINDS["DiffusionGemma"] = diffusion_gemma


@pytest.mark.parametrize("kind", KINDS)
def test_captured_or_explained(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The drafter's passes and the target's forwards are replays, or `EAGER` names the reason that is logged once."""
    caplog.set_level("INFO", "hf_failfast")
    model, used = KINDS[kind](tmp_path)
    pool = RunnerPool("auto", Recorder())
    used.runners = getattr(used, "drafter", used).runners = pool
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(vocab_size, (1, 21), generator=torch.Generator().manual_seed(1))
    expected = model.generate(ids, do_sample=False, max_new_tokens=24)
    for _ in range(2):
        output = failfast(model, ids, used, max_new_tokens=24, return_dict_in_generate=True)
        assert torch.equal(output.sequences, expected)
    assert output.speculation.drafted
    kept = {role: graphs for roles in pool._kept.values() for role, graphs in roles.items()}
    captured = {role for role, graphs in kept.items() if any(slots.forwards for slots in graphs.idle)}
    reasons = [record.getMessage() for record in caplog.records if "CUDA graphs" in record.getMessage()]
    if kind in EAGER:
        assert reasons == [f"Running without CUDA graphs: {EAGER[kind]}."]
        assert captured == {"target"}
    else:
        assert not reasons
        assert captured == {"target", "drafter"}


def test_every_family_is_met() -> None:
    """A family added to the table is missed here until it meets the recorder."""
    folders = {
        "Efficient-DLM-4B": "Efficient-DLM",
        "SDAR-30B-A3B-Chat": "SDAR MoE",
        "Stable-DiffCoder-8B-Instruct": "Stable-DiffCoder",
        "Qwen3-0.6B-diffusion-bd3lm-v0.1": "dllm bd3lm",
        "Qwen3-0.6B-diffusion-mdlm-v0.1": "dllm mdlm",
        "open-dcoder-0.5B": "Open-dCoder",
        "diffullama": "DiffuLLaMA",
        "PARD-Qwen2.5-0.5B": "PARD",
        "WeDLM-8B": "WeDLM",
        "JacobiForcing_Coder_7B_v1": "Jacobi forcing",
        "SDLM-3B-D8": "SDLM",
        "CoDA-v0-Instruct": "CoDA",
        "RND1-Base-0910": "RND1",
    }
    optional = {"DFlash assistant of transformers", "DiffusionGemma"}  # not in every transformers
    assert {family.name for family in FAMILIES} - optional <= {folders.get(kind, kind) for kind in KINDS}
    assert set(EAGER) <= set(KINDS) | optional


@pytest.mark.parametrize("kind", ["bundled", "shared layers, every third id", "trained", "DFlash"])
def test_nothing_is_in_training_mode(kind: str, tmp_path: Path) -> None:
    """Every module that a loaded drafter's forward runs through is in evaluation mode, those made later included."""
    model, used = KINDS[kind](tmp_path)
    session: Any = used.start(DraftRequest(model, 64))
    body = session.runner.model if hasattr(session, "runner") else session.body
    assert not [type(module).__name__ for module in body.modules() if module.training]
