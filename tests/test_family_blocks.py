"""Block-causal drafters without shift: SDAR and its relatives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_support import DATA, check_parity, copy_checkpoint, forward_data, read_json, save_as, tiny_model

from hf_failfast import DrafterSpec, load_drafter
from hf_failfast.drafters.attention import FreeBlocks
from hf_failfast.drafters.masked import MaskedDrafter

CASES = {"sdar/case_1": (235, 4), "sdar/case_2": (203, 32)}
RUNS = [
    (folder, run)
    for folder in CASES
    for run in read_json(f"{folder}/denoise.json")
    if "greedy" in run["sampler"] and not run.get("topk_overrun")
]


def load(folder: str, **options: Any) -> MaskedDrafter:
    mask_token_id, block_size = CASES[folder]
    drafter = load_drafter(
        DATA / folder / "checkpoint", mask_token_id=mask_token_id, block_size=block_size, dtype=torch.float32, **options
    )
    assert isinstance(drafter, MaskedDrafter)
    return drafter


@pytest.mark.parametrize("folder", CASES)
@torch.no_grad()
def test_logits(folder: str) -> None:
    drafter = load(folder)
    for ids, expected in forward_data(folder):
        session = drafter.start(drafter.model, 128, None)
        positions = torch.arange(ids.shape[1])
        limit = session.pattern.limit(positions, 0, ids.shape[1])
        logits = session.runner(ids, session.cache, ids.shape[1], limit)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
