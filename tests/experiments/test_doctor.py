"""The doctor finds what is wrong with a pair, and says the likeliest cause in one sentence."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedTokenizerFast

from hf_failfast.decoding.acceptance import Acceptance
from hf_failfast.decoding.stats import RoundRecord, SpecDecodingStats
from hf_failfast.experiments.doctor import costs as doctor_costs
from hf_failfast.experiments.doctor.acceptance import accepted_shares
from hf_failfast.experiments.doctor.checkup import Checkup
from hf_failfast.experiments.doctor.costs import RelativeCosts
from hf_failfast.experiments.doctor.examination import examine
from hf_failfast.experiments.doctor.exactness import parting
from hf_failfast.experiments.doctor.promise import promise
from hf_failfast.policies.base import RoundCosts

PROMPTS = ("a b c", "x y z q")
WORDS = ["<mask>", "<end>", *"abcdefghijklmnopqrstuvwxyz"]


def changed(folder: Path, name: str = "config.json", **values: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.fixture
def pair(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target, well apart in its logits, and a drafter with its weights: its first draft token is the target's own."""
    model = tiny_model("llama", vocab_size=len(WORDS), num_key_value_heads=4)
    drafter = tmp_path_factory.mktemp("pair") / "drafter"
    section = json.loads((folder / "config.json").read_text())["failfast"]
    model.save_pretrained(folder)
    shutil.copytree(folder, drafter)
    changed(drafter, failfast=section)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (drafter / name).unlink()
    return folder, drafter


def examined(target: Path | None, drafter: Path | None = None, **options: Any) -> dict[str, Any]:
    named = (None if each is None else str(each) for each in (target, drafter))
    found = examine(Checkup(*named, **({"prompts": PROMPTS, "max_new_tokens": 24} | options)))
    json.dumps(found, allow_nan=False)
    assert found["advice"].endswith((".", "`"))
    return found


def test_a_good_pair(pair: tuple[Path, Path]) -> None:
    found = examined(*pair)
    print(json.dumps(found, indent=1))
    assert found["exact"]
    assert found["exactness"]["float32"]["identical"] == 2
