"""DiffusionGemma on a tiny random model, compared with transformers' own forward (no weights are at hand)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_support import check_parity, tiny_model
from sessions import chunk_of, session_of

from hf_failfast import load_drafter
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint
from hf_failfast.drafters.diffusion_gemma import DiffusionGemmaDrafter

transformers = pytest.importorskip("transformers", minversion="5.17")
if not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"):
    pytest.skip("this transformers has no DiffusionGemma", allow_module_level=True)

TEXT: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "max_position_embeddings": 512,
    "sliding_window": 16,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.DiffusionGemmaConfig(
        text_config=TEXT, vision_config=VISION, canvas_length=16, image_token_id=119, initializer_range=0.3
    )
    model = transformers.DiffusionGemmaForBlockDiffusion(config).to(torch.bfloat16)
    path = tmp_path_factory.mktemp("diffusion-gemma")
    model.save_pretrained(path)
    return path


def load(folder: Path, **options: Any) -> DiffusionGemmaDrafter:
    drafter = load_drafter(folder, **options)
    assert isinstance(drafter, DiffusionGemmaDrafter)
    return drafter


@pytest.mark.parametrize("length", [9, 40])
@torch.no_grad()
def test_a_chunk_is_one_native_step(folder: Path, length: int) -> None:
    """A chunk equals transformers' own step on the session's random canvas, within and beyond the sliding window."""
    drafter = load(folder, dtype=torch.float32)
    session = session_of(drafter, tiny_model("qwen2", 120), 128)
    text = torch.randint(0, 110, (1, length), generator=torch.Generator().manual_seed(1))
    canvas = torch.randint(120, (1, 8), generator=torch.Generator().manual_seed(0))
    logits = drafter.model(input_ids=text, decoder_input_ids=canvas).logits
    confidence, ids = logits.softmax(dim=-1).max(dim=-1)
    chunk = chunk_of(session, text, text[:, :0], 8)
    assert chunk.token_ids.tolist() == ids.tolist()
    torch.testing.assert_close(chunk.confidence, confidence, atol=1e-5, rtol=0)


@torch.no_grad()
def test_slots_after_a_rejected_draft(folder: Path) -> None:
    drafter = load(folder, dtype=torch.float32)
    sessions = [session_of(drafter, tiny_model("qwen2", 120), 128) for _ in range(2)]
    text = torch.arange(30)[None]
    chunk = chunk_of(sessions[0], text, text[:, :0], 6)
    chunk_of(sessions[0], text, chunk.token_ids, 6)  # a second chunk: the first one is in the slots now
    sessions[0].lengths = [30]
    sessions[0].accept([2])
    text = torch.cat([text, chunk.token_ids[:, :2], torch.tensor([[5]])], dim=1)
    for session in sessions:
        session.generator.manual_seed(7)
    kept, fresh = (chunk_of(session, text, text[:, :0], 6) for session in sessions)
    torch.testing.assert_close(kept.confidence, fresh.confidence, atol=1e-5, rtol=0)


def test_both_loops_write_what_the_target_writes(folder: Path) -> None:
    check_parity(tiny_model("qwen2", 120), load(folder, dtype=torch.float32), 16)


def test_loading(folder: Path) -> None:
    assert load(folder).model.dtype == torch.bfloat16
    found = inspect_checkpoint(folder)
    assert (found.family, found.spec.noise, found.spec.mask_token_id) == ("DiffusionGemma", "random", None)
    with pytest.raises(ValueError, match="drafts in its own way"):
        load(folder, denoising_steps=2)
    with pytest.raises(ValueError, match="cannot come from the same tokenizer"):
        session_of(load(folder), tiny_model("qwen2", 96), 64)
