"""Tiny random targets and drafters, and the settings of a test run."""

import copy
import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import environment as environment  # sets what the imports below read  # isort: split
import hypothesis
import pytest
import torch
import transformers
from counters import host_reads as host_reads
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import hf_failfast
from hf_failfast.drafters import DiffusionDrafter

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")

REPOSITORY = Path(__file__).parent.parent


def quick_first(values: Iterable[Any], num_quick: int = 1) -> list[Any]:
    """Values of a parameter: the first ones for every run, the others for exhaustive runs only."""
    return [
        pytest.param(value, marks=() if index < num_quick else pytest.mark.exhaustive)
        for index, value in enumerate(values)
    ]


VOCAB_SIZE = 120  # ids a target knows
MASK_ID = 121  # only in the drafters' vocabulary
DRAFTER_VOCAB_SIZE = 128
POSITIONS = 4096

TARGETS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 16,
        "final_logit_softcapping": 15.0,
        "attn_implementation": "eager",
    },
    "mistral": {"sliding_window": 16},
    "gpt2": {},
    "phi": {"partial_rotary_factor": 0.5},
    "olmo": {},
}


def tiny_model(model_type: str, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A random causal LM of the family, with weights large enough that its logits are well apart."""
    settings = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if model_type == "phi" else 2,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if model_type == "gpt2":
        del settings["intermediate_size"], settings["num_key_value_heads"]
    settings |= TARGETS.get(model_type, {}) | options
    attention = settings.pop("attn_implementation", None)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **settings)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@functools.cache
def target(model_type: str) -> PreTrainedModel:
    """The target that all tests of a family share; none of them may change it."""
    return tiny_model(model_type)


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    """Random ids (1, length)."""
    return torch.randint(VOCAB_SIZE, (1, length), generator=torch.Generator().manual_seed(1000 * seed + length))


def plain(model: PreTrainedModel, input_ids: torch.Tensor, **kwargs: Any) -> Any:
    """transformers' own greedy search, the reference of every test."""
    return model.generate(input_ids, do_sample=False, **kwargs)


def failfast(model: PreTrainedModel, input_ids: torch.Tensor, drafter: Any, **kwargs: Any) -> Any:
    """Our loop, by `custom_generate`."""
    return model.generate(input_ids, do_sample=False, assistant_model=drafter, custom_generate="hf_failfast", **kwargs)


def assisted(model: PreTrainedModel, input_ids: torch.Tensor, drafter: Any, **kwargs: Any) -> Any:
    """The same drafter in transformers' assisted loop."""
    return hf_failfast.assisted_generate(model, input_ids, do_sample=False, assistant_model=drafter, **kwargs)


LOOPS = {"failfast": failfast, "assisted": assisted}

DOORS: dict[str, dict[str, Any]] = {
    "name": {"custom_generate": "hf_failfast"},
    "function": {"custom_generate": hf_failfast.generate},
    "folder": {"custom_generate": str(REPOSITORY), "trust_remote_code": True},
}


# Drafters


DRAFTERS: dict[str, dict[str, Any]] = {
    "canvas": {"attention": "causal_canvas", "shift": 0},
    "canvas_shift": {"attention": "causal_canvas", "shift": 1},
    "block": {"attention": "block_causal", "shift": 0, "block_size": 8},
    "block_shift": {"attention": "block_causal", "shift": 1, "block_size": 8},
    "bidirectional": {"attention": "bidirectional", "shift": 0},
    "bidirectional_shift": {"attention": "bidirectional", "shift": 1},
}


@functools.cache
def _checkpoint(model_type: str, seed: int) -> str:
    """A saved drafter: the weights of the family's target itself (seed 0), with rows for the mask id added."""
    folder = tempfile.mkdtemp(prefix="drafter-")
    model = copy.deepcopy(target(model_type)) if seed == 0 else tiny_model(model_type, seed)
    torch.manual_seed(seed)
    model.resize_token_embeddings(DRAFTER_VOCAB_SIZE, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


@functools.cache
def drafter(kind: str, model_type: str = "qwen2", seed: int = 0) -> DiffusionDrafter:
    """A real drafter with the weights of the family's target and the spec of `DRAFTERS[kind]`.

    With shift 1 and causal rows its first token is the target's own, so drafts are accepted and rolled back.
    """
    return hf_failfast.load_drafter(
        _checkpoint(model_type, seed), mask_token_id=MASK_ID, dtype=torch.float32, **DRAFTERS[kind]
    )


@functools.cache
def saved_drafter(kind: str, model_type: str = "qwen2") -> str:
    """The folder of a drafter whose config says how it drafts."""
    folder = tempfile.mkdtemp(prefix="drafter-")
    shutil.copytree(_checkpoint(model_type, 0), folder, dirs_exist_ok=True)
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text())
    options = {"confidence_threshold": 0.3, "chunk_length": 6, "max_draft_length": 30}
    config["failfast"] = DRAFTERS[kind] | options | {"mask_token_id": MASK_ID}
    file.write_text(json.dumps(config))
    return folder


@functools.cache
def shared_drafter(draft_vocabulary: int | None = None) -> DiffusionDrafter:
    """The layers of the Llama target between the target's own embedding and head; optionally only every n-th id."""
    return hf_failfast.load_drafter(save_shared_drafter(draft_vocabulary))


@functools.cache
def save_shared_drafter(draft_vocabulary: int | None = None) -> Path:
    """The folder of `shared_drafter`."""
    folder = Path(tempfile.mkdtemp(prefix="drafter-"))
    body = target("llama").model
    weights = {f"model.{name}": value for name, value in body.state_dict().items() if "embed" not in name}
    weights["mask_embedding"] = torch.full((32,), 0.1)
    if draft_vocabulary is not None:
        weights["draft_vocabulary"] = torch.arange(0, VOCAB_SIZE, draft_vocabulary)
    save_file(weights, folder / "model.safetensors")
    spec = {"attention": "causal_canvas", "shift": 1, "mask_token_id": VOCAB_SIZE, "shared_embeddings": True}
    (folder / "config.json").write_text(json.dumps(target("llama").config.to_dict() | {"failfast": spec}))
    return folder


@pytest.fixture(scope="module", autouse=True)
def accelerate_begins_anew() -> Iterator[None]:
    """Resets accelerate, which keeps its first precision; lm-eval and training ask for different ones."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


# Text


def character_tokenizer(shift: int = 0) -> PreTrainedTokenizerFast:
    """One character per id."""
    inner = Tokenizer(models.WordLevel({chr(33 + i): (i + shift) % VOCAB_SIZE for i in range(VOCAB_SIZE)}, "!"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="!")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One character per id."""
    return character_tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny target with a tokenizer; its own weights can draft for it."""
    words = ["<mask>", "<end>", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(tmp_path)
    ids = {"vocab_size": len(words), "eos_token_id": 1, "pad_token_id": 1}
    tiny_model("llama", **ids, num_key_value_heads=4, initializer_range=0.02).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["failfast"] = {"attention": "causal_canvas", "shift": 1, "mask_token_id": 0, "chunk_length": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path
