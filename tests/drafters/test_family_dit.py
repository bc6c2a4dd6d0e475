"""Diffusion transformers with our own body: MDLM (bidirectional) and BD3-LM (blocks)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_support import DATA, check_parity, copy_checkpoint, forward_data, read_json, replay, tiny_model
from sessions import chunk_of, session_of

from hf_failfast import DrafterSpec, load_drafter
from hf_failfast.drafters.bodies.dit import DiT
from hf_failfast.drafters.masked.session import MaskedDrafter, MaskedSession
from hf_failfast.engine.slot_cache import SlotCache

SPECS = {"mdlm": DrafterSpec("bidirectional", 0, 199), "bd3lm": DrafterSpec("block_causal", 0, 199, 4)}
RUNS = [(family, run) for family in SPECS for run in read_json(f"{family}/case_1/denoise.json")]


def load(family: str, **options: Any) -> MaskedDrafter:
    drafter = load_drafter(DATA / family / "case_1" / "checkpoint", **options)
    assert isinstance(drafter, MaskedDrafter)
    assert isinstance(drafter.model, DiT)
    return drafter


def start(drafter: MaskedDrafter) -> MaskedSession:
    session = session_of(drafter, tiny_model("gpt2", 199), 256)
    assert isinstance(session, MaskedSession)
    return session


@pytest.mark.parametrize("family", SPECS)
@torch.no_grad()
def test_logits(family: str) -> None:
    drafter = load(family)
    assert drafter.spec == SPECS[family]
    for ids, expected in forward_data(f"{family}/case_1"):
        session = start(drafter)
        length = ids.shape[1]
        limit = session.pattern.limit(torch.arange(length), 0, length)
        mask = torch.arange(length) < limit[:, None]
        cache = SlotCache(2, length)
        logits = drafter.model.backbone(ids, torch.arange(length)[None], mask[None, None], cache, slice(None))
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("family", "run"), RUNS)
def test_every_step(family: str, run: dict[str, Any]) -> None:
    session, output, prompt = start(load(family)), run["output_ids"], run["prompt"]
    if family == "mdlm":
        return replay(session, prompt, output, run["steps"], len(output))
    for first in range(len(prompt) // 4 * 4, len(output), 4):
        steps = [step for step in run["steps"] if first <= step["pos"][0] < first + 4]
        replay(session, output[: max(first, len(prompt))], output, steps, first + 4)
    return None


@pytest.mark.parametrize(("family", "run"), RUNS)
@torch.no_grad()
def test_whole_drafts(family: str, run: dict[str, Any]) -> None:
    """One chunk by the threshold rule equals the original's; passes that only commit blocks are not counted."""
    prompt = torch.tensor([run["prompt"]])
    length = len(run["output_ids"]) - prompt.shape[1]
    chunk = chunk_of(start(load(family, denoising_threshold=run["threshold"])), prompt, prompt[:, :0], length)
    assert chunk.token_ids[0].tolist() == run["output_ids"][prompt.shape[1] :]
    assert chunk.passes == len(run["steps"])


@pytest.mark.parametrize("family", SPECS)
def test_both_loops_write_what_the_target_writes(family: str) -> None:
    """Texts are the target's in both loops, for a GPT-2 target without the mask entry."""
    target = tiny_model("gpt2", 199)
    check_parity(target, load(family))
    check_parity(target, load(family, denoising_steps=4), tokens=20)
    if family == "mdlm":
        check_parity(target, load(family, prefix_block=8), tokens=20)


def test_drafting_ends_with_the_positions_the_model_was_trained_on(tmp_path: Path) -> None:
    folder = copy_checkpoint("mdlm/case_1/checkpoint", tmp_path / "short", model_length=32)
    stats = check_parity(tiny_model("gpt2", 199), load_drafter(folder), confidence_threshold=1.0)
    assert stats.records[-1].drafted == 0


def test_dtypes_and_weights(tmp_path: Path) -> None:
    assert load("mdlm").model.dtype == torch.float32
    half = load("mdlm", dtype="bfloat16")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    check_parity(tiny_model("gpt2", 199), half, tokens=12)
    deeper = copy_checkpoint("mdlm/case_1/checkpoint", tmp_path / "deeper", n_blocks=3)
    with pytest.raises(ValueError, match=r"missing \['backbone.blocks.2"):
        load_drafter(deeper)
    conditioned = copy_checkpoint("mdlm/case_1/checkpoint", tmp_path / "conditioned", time_conditioning=True)
    with pytest.raises(ValueError, match="`time_conditioning` is not supported"):
        load_drafter(conditioned)
    with pytest.raises(ValueError, match="`mask_token_id` must be 199"):
        load("mdlm", mask_token_id=200)
    load("mdlm", device_map="auto")
    wider = copy_checkpoint("mdlm/case_1/checkpoint", tmp_path / "wider", hidden_dim=128)
    with pytest.raises(ValueError, match="other shapes"):
        load_drafter(wider)
