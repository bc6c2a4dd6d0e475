"""Block-causal drafters without shift: SDAR and its relatives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_support import DATA, check_parity, copy_checkpoint, forward_data, read_json, replay, save_as, tiny_model
from sessions import chunk_of, logits_of, session_of

from hf_failfast import DrafterSpec, load_drafter
from hf_failfast.drafters.masked.attention_patterns import FreeBlocks
from hf_failfast.drafters.masked.session import MaskedDrafter

CASES = {"sdar/case_1": (235, 4), "sdar/case_2": (203, 32)}
# Without the runs that sample, and those where the original overwrites filled positions.
RUNS = [
    (folder, index, run)
    for folder in CASES
    for index, run in enumerate(read_json(f"{folder}/denoise.json"))
    if "greedy" in run["sampler"] and "steps" in run and not run.get("topk_overrun")
]

THRESHOLD_RUNS = [
    one
    for one in RUNS
    if one[2]["strategy"] == "low_confidence_dynamic" and one[2]["denoising_steps"] == one[2]["block_length"]
]


def load(folder: str, **options: Any) -> MaskedDrafter:
    mask_token_id, block_size = CASES[folder]
    drafter = load_drafter(
        DATA / folder / "checkpoint",
        mask_token_id=mask_token_id,
        block_size=block_size,
        dtype=torch.float32,
        **options,
    )
    assert isinstance(drafter, MaskedDrafter)
    return drafter


@pytest.mark.parametrize("folder", CASES)
@torch.no_grad()
def test_logits(folder: str) -> None:
    drafter = load(folder)
    for ids, expected in forward_data(folder):
        session = session_of(drafter, drafter.model, 128)
        positions = torch.arange(ids.shape[1])
        limit = session.pattern.limit(positions, 0, ids.shape[1])
        logits = logits_of(session.runner, ids, session.cache, ids.shape[1], limit)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_enough_runs_are_compared() -> None:
    assert len([run for folder, _, run in RUNS if folder == "sdar/case_1"]) >= 10
    assert len([run for folder, _, run in RUNS if folder == "sdar/case_2"]) >= 10


@pytest.mark.parametrize(("folder", "index", "run"), RUNS)
def test_every_step_of_the_original(folder: str, index: int, run: dict[str, Any]) -> None:
    """Ids and confidences of every denoising step equal the original's, block after block."""
    drafter = load(folder)
    session = session_of(drafter, drafter.model, 256)
    block = run["block_length"]
    output = run["output_ids"]
    for first in range(len(run["prompt"]) // block * block, len(output), block):
        known = max(first, len(run["prompt"]))
        steps = [step for step in run["steps"] if first <= step["pos"][0] < first + block]
        replay(session, output[:known], output, steps, first + block)


@pytest.mark.parametrize(("folder", "index", "run"), THRESHOLD_RUNS)
@torch.no_grad()
def test_whole_drafts_of_the_original(folder: str, index: int, run: dict[str, Any]) -> None:
    """One chunk as long as the original's text, over several blocks, equals it by the threshold rule."""
    drafter = load(folder, denoising_threshold=run["confidence_threshold"])
    session = session_of(drafter, drafter.model, 256)
    prompt = torch.tensor([run["prompt"]])
    chunk = chunk_of(session, prompt, prompt[:, :0], len(run["output_ids"]) - prompt.shape[1])
    assert chunk.token_ids[0].tolist() == run["output_ids"][prompt.shape[1] :]
    # The original spends one more pass on every block that it finishes, and on every block of the prompt.
    assert chunk.passes == len(run["steps"])


@pytest.mark.parametrize("folder", CASES)
def test_both_loops_write_what_the_target_writes(folder: str) -> None:
    drafter = load(folder)
    vocab_size = drafter.model.config.vocab_size
    check_parity(tiny_model("qwen3", vocab_size, head_dim=8), drafter)
    check_parity(tiny_model("qwen3", vocab_size, head_dim=8), load(folder, denoising_steps=3), tokens=16)


def test_the_hub_names_no_block_size_so_the_checkpoint_name_does(tmp_path: Path) -> None:
    """SDAR configs name no block size: it is 4, unless the checkpoint's name ends in `-bN` or the caller names one."""
    plain = copy_checkpoint("sdar/case_2/checkpoint", tmp_path / "SDAR-tiny-Chat")
    assert load_drafter(plain, mask_token_id=203).spec == DrafterSpec("block_causal", 0, 203, 4)
    named = copy_checkpoint("sdar/case_2/checkpoint", tmp_path / "SDAR-tiny-Chat-b16")
    assert load_drafter(named, mask_token_id=203).spec.block_size == 16
    assert load_drafter(named, mask_token_id=203, block_size=32).spec.block_size == 32
    with pytest.raises(ValueError, match="`mask_token_id` must be < 208, the drafter's embedding rows, but is 151669"):
        load_drafter(plain)


MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
# By folder name: body, its options, keys of the public config, and the expected spec.
PUBLIC = {
    "SDAR-30B-A3B-Chat": ("qwen3_moe", MOE, {"model_type": "sdar_moe"}, (4, "absolute", None)),
    "Efficient-DLM-4B": ("qwen3", {"head_dim": 8}, {"block_size": 32}, (32, "absolute", None)),
    "Qwen3-0.6B-diffusion-bd3lm-v0.1": ("qwen3", {"head_dim": 8}, {"model_type": "a2d-qwen3"}, (32, "free", None)),
    "Qwen2.5-Coder-0.5B-Instruct-diffusion-bd3lm-v0.1": (
        "qwen2",
        {},
        {"model_type": "a2d-qwen2"},
        (32, "free", None),
    ),
    "Stable-DiffCoder-8B-Instruct": (
        "llama",
        {},
        {"architectures": ["StableDiffcoderForCausalLM"]},
        (4, "absolute", 5),
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_formats_load_and_draft(name: str, tmp_path: Path) -> None:
    """A tiny random body with the public config keys loads and drafts (no public weights are at hand)."""
    body, options, changes, (block_size, alignment, mask_token_id) = PUBLIC[name]
    folder = save_as(tiny_model(body, 128, seed=3, **options), tmp_path / name, changes)
    given = {} if mask_token_id is not None else {"mask_token_id": 127}
    drafter = load_drafter(folder, **given)
    assert drafter.spec == DrafterSpec("block_causal", 0, mask_token_id or 127, block_size, alignment=alignment)
    check_parity(tiny_model(body, 126, **options), drafter)


@torch.no_grad()
def test_a_fresh_block_is_a_block_of_its_own() -> None:
    """At a block's edge both alignments agree; elsewhere a free block still takes a whole chunk."""
    absolute, free = load("sdar/case_2"), load("sdar/case_2", alignment="free")
    sessions = [session_of(drafter, drafter.model, 256) for drafter in (absolute, free)]
    assert isinstance(sessions[1].pattern, FreeBlocks)
    text = torch.arange(64)[None]
    first, second = (chunk_of(session, text, text[:, :0], 20) for session in sessions)
    assert first.token_ids.tolist() == second.token_ids.tolist()
    for session in sessions:
        session.lengths = [64]
        session.accept([20])
    longer = torch.cat([text, first.token_ids, torch.tensor([[7]])], dim=1)
    first, second = (chunk_of(session, longer, longer[:, :0], 20) for session in sessions)
    assert (first.passes, second.passes) == (2, 1)


@pytest.mark.parametrize("alignment", ["absolute", "free"])
@torch.no_grad()
def test_slots_give_what_recomputation_gives(alignment: str) -> None:
    """Over rounds of draft and accept, kept K/V give the confidences of a fresh session."""
    drafter = load("sdar/case_2", alignment=alignment)
    session = session_of(drafter, drafter.model, 256)
    text = torch.arange(5)[None]
    for accepted in (3, 0, 12, 9, 20, 1, 17):
        chunk = chunk_of(session, text, text[:, :0], 20)
        fresh = chunk_of(session_of(drafter, drafter.model, 256), text, text[:, :0], 20)
        torch.testing.assert_close(chunk.confidence, fresh.confidence, atol=1e-5, rtol=0)
        session.lengths = [text.shape[1]]
        session.accept([accepted])
        text = torch.cat([text, chunk.token_ids[:, :accepted], torch.tensor([[accepted]])], dim=1)
