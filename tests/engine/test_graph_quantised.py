"""Quantised targets in graphs: captured where the kernels allow it, refused by name where not.

bitsandbytes' CPU kernels stand for those of a GPU; `benchmarks/gpu.py` runs the latter.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import failfast, plain, prompt, shared_drafter, target
from graph_support import Recorder
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hf_failfast.engine.cuda.eligibility import obstacle
from hf_failfast.engine.cuda.graph_runner import CudaGraphRunner
from hf_failfast.engine.runner_pool import RunnerPool

pytest.importorskip("bitsandbytes")


def quantised(folder: Path, **options: Any) -> Any:
    target("llama").save_pretrained(folder)
    config = BitsAndBytesConfig(**options)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map={"": "cpu"}).eval()


@pytest.mark.parametrize(
    "options",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
        {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    ],
    ids=["nf4", "fp4, nested", "int8"],
)
def test_captured(options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The target's forwards are replays, and its text is its own plain text."""
    model = quantised(tmp_path, **options)
    used = copy.copy(shared_drafter())
    used.runners = RunnerPool("cuda_graphs", Recorder())
    assert isinstance(used.runners.target(model), CudaGraphRunner)
    expected = plain(model, prompt(20), max_new_tokens=20)
    assert torch.equal(failfast(model, prompt(20), used, max_new_tokens=20), expected)
    assert used.runners._kept[model]["target"].idle[0].forwards
    assert not [record for record in caplog.records if "CUDA graphs" in record.getMessage()]


def test_outliers_are_refused_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """8-bit layers that look for outliers wait for the GPU inside a kernel of theirs, where no rehearsal sees it."""
    model = quantised(tmp_path, load_in_8bit=True)
    assert obstacle(model) == "its 8-bit layers look for outlier columns in every forward (`llm_int8_threshold` > 0)"
    used = copy.copy(shared_drafter())
    used.runners = RunnerPool("cuda_graphs", Recorder())
    with pytest.warns(UserWarning, match="`llm_int8_threshold`=6.0"):
        failfast(model, prompt(20), used, max_new_tokens=4)
    said = [record.getMessage() for record in caplog.records if "CUDA graphs" in record.getMessage()]
    assert said == [f"Running without CUDA graphs: {obstacle(model)}."]
