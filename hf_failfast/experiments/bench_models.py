"""The models of a benchmark, and what they are asked."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ..drafters import DiffusionDrafter, load_drafter
from ..pairs import DEMO_PROMPTS, Pair, encode_prompt, load_pair

# Beside the demo's, prompts of other kinds.
PROMPTS = (
    *DEMO_PROMPTS,
    "Explain photosynthesis to a child.",
    "Write a C function that reverses a string.",
    "Give me a recipe for pancakes.",
    "Summarise the plot of Romeo and Juliet in three sentences.",
)
RANDOM_PROMPTS, RANDOM_PROMPT_TOKENS = 4, 64
WEIGHTS = ("*.safetensors", "*.bin")


def load(target: str | None, drafter: str | None, dtype: Any, device: str) -> Pair:
    """The pair; models of which there is only a `config.json` get random weights, and no tokenizer is needed then."""
    if target is None or drafter is None or not is_without_weights(target):
        return load_pair(target, drafter, dtype, device)
    names = {"target": target, "drafter": drafter}
    model = _random_model(target, dtype).to(device)
    return Pair(model, None, _random_drafter(drafter, model.dtype, model.device), names)


def is_without_weights(folder: str) -> bool:
    """Whether the folder holds a model's config and nothing else of it."""
    path = Path(folder)
    return (path / "config.json").is_file() and not any(file for pattern in WEIGHTS for file in path.glob(pattern))


def _random_model(folder: str, dtype: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    return AutoModelForCausalLM.from_config(config, **({} if dtype == "auto" else {"dtype": dtype})).eval()


def _random_drafter(folder: str, dtype: torch.dtype, device: torch.device) -> DiffusionDrafter:
    if not is_without_weights(folder):
        return load_drafter(folder, dtype=dtype, device_map=device)
    with tempfile.TemporaryDirectory() as scratch:
        _random_model(folder, dtype).save_pretrained(scratch)
        copytree(folder, scratch, dirs_exist_ok=True)  # the config as it was: it says how the drafter drafts
        return load_drafter(scratch, dtype=dtype, device_map=device)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[str], target: PreTrainedModel
) -> list[torch.Tensor]:
    """The prompts' ids (1, n); random ones where there is no tokenizer."""
    if tokenizer is not None:
        return [encode_prompt(tokenizer, text).to(target.device) for text in texts]
    generator = torch.Generator().manual_seed(0)
    vocab_size = target.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(vocab_size, (RANDOM_PROMPTS, 1, RANDOM_PROMPT_TOKENS), generator=generator)
    return list(ids.to(target.device))
