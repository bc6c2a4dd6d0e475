"""Drafters that fill masks causally (PARD, WeDLM, Jacobi forcing) or around an anchor (SDLM, Nemotron's)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_support import check_parity, save_as, tiny_model
from safetensors.torch import load_file, save_file
from sessions import chunk_of, session_of
from transformers import PreTrainedModel

from hf_failfast import DrafterSpec, load_drafter
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint
from hf_failfast.drafters.masked.session import MaskedDrafter

MASK = 127
QWEN3 = {"head_dim": 8}
# Folder name -> body, its options, keys of the public config, the spec, and the chunk of a pass.
PUBLIC: dict[str, tuple[str, dict[str, Any], dict[str, Any], DrafterSpec, int | None]] = {
    "PARD-Qwen2.5-0.5B": ("qwen2", {}, {"pard_token": MASK, "spd_type": "pard"}, DrafterSpec("causal", 1, MASK), None),
    "PARD-Qwen3-0.6B": ("qwen3", QWEN3, {"pard_token": MASK}, DrafterSpec("causal", 1, MASK), None),
    "PARD-Llama-3.2-1B": ("llama", {}, {"pard_token": MASK}, DrafterSpec("causal", 1, MASK), None),
    "WeDLM-8B": (
        "qwen3",
        QWEN3,
        {"model_type": "wedlm", "qk_norm": True, "mask_token_id": MASK, "wedlm_window_size": 16},
        DrafterSpec("causal", 0, MASK),
        None,
    ),
    "WeDLM-7B": (
        "qwen2",
        {},
        {"model_type": "wedlm", "qk_norm": False, "mask_token_id": MASK},
        DrafterSpec("causal", 0, MASK),
        None,
    ),
    "JacobiForcing_Coder_7B_v1": ("qwen2", {}, {}, DrafterSpec("causal", 1, None, noise="random"), None),
    "SDLM-3B-D8": (
        "qwen2",
        {},
        {"text_mask_token_id": MASK, "block_size": 8, "causal_attn": False},
        DrafterSpec("anchored_canvas", 1, MASK, 8),
        8,
    ),
    "CoDA-v0-Instruct": (
        "qwen3",
        QWEN3,
        {"model_type": "CoDA", "mask_token_id": MASK},
        DrafterSpec("bidirectional", 1, MASK),
        None,
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_formats_load_and_draft(name: str, tmp_path: Path) -> None:
    """A tiny random body with the public config keys loads and drafts (no public weights are at hand)."""
    body, options, changes, spec, chunk = PUBLIC[name]
    folder = save_as(tiny_model(body, 128, seed=3, **options), tmp_path / name, changes)
    drafter = load_drafter(folder)
    assert isinstance(drafter, MaskedDrafter)
    assert drafter.spec == spec
    check_parity(tiny_model(body, 126, **options), drafter, 24)
    assert inspect_checkpoint(folder).chunk_per_pass == chunk


def nemotron(folder: Path) -> tuple[Path, PreTrainedModel]:
    """Ministral 3 under the names of the public checkpoint, with its yarn embedding, and the body itself."""
    rope = {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 4.0,
        "llama_4_scaling_beta": 0.1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 1000000.0,
        "rope_type": "yarn",
    }
    model = tiny_model("ministral3", 128, seed=3, head_dim=8, max_position_embeddings=64, rope_parameters=rope)
    public = {
        "model_type": "nemotron_labs_diffusion",
        "architectures": ["NemotronLabsDiffusionModel"],
        "block_size": 6,
        "mask_token_id": 100,
        "dlm_paradigm": "bidirectional",
        "ar_loss_weight": 1.0,
        "dlm_loss_weight": None,
        "dp_varying_mask_ratio": False,
        "attention_bias": False,
        "mlp_bias": False,
        "attn_implementation": "sdpa",
    }
    save_as(model, folder, public, removed=())
    weights = load_file(folder / "model.safetensors")
    renamed = {
        key.replace("model.", "encoder.", 1).replace("lm_head.", "diffusion_head."): value
        for key, value in weights.items()
    }
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, model


@torch.no_grad()
def test_nemotron_labs_diffusion(tmp_path: Path) -> None:
    """Its draft is that of its body, with the last token and the masks in one window after causal text."""
    folder, body = nemotron(tmp_path / "Nemotron-Labs-Diffusion-8B")
    drafter = load_drafter(folder, dtype=torch.float32)
    assert isinstance(drafter, MaskedDrafter)
    assert drafter.spec == DrafterSpec("anchored_canvas", 0, 100, 6)
    assert inspect_checkpoint(folder).chunk_per_pass == 5
    text = torch.randint(0, 90, (1, 13), generator=torch.Generator().manual_seed(0))
    expected = whole_forward(body, text, masks=5, mask_token_id=100, sees_all=12)[0, 13:]
    chunk = chunk_of(session_of(drafter, drafter.model, 64), text, text[:, :0], 5)
    assert chunk.token_ids[0].tolist() == best(expected, 100)
    check_parity(tiny_model("llama", 128), drafter, 24)


def whole_forward(
    body: PreTrainedModel, text: torch.Tensor, masks: int, mask_token_id: int, sees_all: int
) -> torch.Tensor:
    """Logits of one pass over all of it: rows before `sees_all` are causal, the others see everything."""
    ids = torch.cat([text, text.new_full((1, masks), mask_token_id)], dim=1)
    length = ids.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[sees_all:] = True
    additive = torch.zeros(1, 1, length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
    return body(ids, attention_mask=additive, position_ids=torch.arange(length)[None]).logits


def best(logits: torch.Tensor, mask_token_id: int) -> list[int]:
    logits = logits.clone()
    logits[:, mask_token_id] = -torch.inf
    return logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("attention", ["causal", "anchored_canvas"])
@torch.no_grad()
def test_a_pass_is_the_bodys_own(attention: str, shift: int, tmp_path: Path) -> None:
    """Row by row as in one pass over everything, also when earlier rounds have left their K/V."""
    body = tiny_model("qwen2", 128, seed=3)
    body.save_pretrained(tmp_path)
    drafter = load_drafter(tmp_path, attention=attention, shift=shift, mask_token_id=MASK, dtype=torch.float32)
    session = session_of(drafter, drafter.model, 128)
    text = torch.randint(0, 120, (1, 9), generator=torch.Generator().manual_seed(1))
    for accepted in (0, 3, 4, 1, 0):
        chunk = chunk_of(session, text, text[:, :0], 4)
        end = text.shape[1]
        sees_all = end - 1 if attention == "anchored_canvas" else end + 9
        logits = whole_forward(body, text, 4 - shift, MASK, sees_all)[0, end - shift : end - shift + 4]
        assert chunk.token_ids[0].tolist() == best(logits, MASK)
        assert chunk.passes == 1
        session.lengths = [end]
        session.accept([accepted])
        text = torch.cat([text, chunk.token_ids[:, :accepted], torch.tensor([[7]])], dim=1)


@pytest.mark.parametrize("attention", ["causal", "anchored_canvas"])
@torch.no_grad()
def test_long_chunks_and_several_steps(attention: str, tmp_path: Path) -> None:
    """A chunk longer than the window takes more passes; several denoising steps stay lossless."""
    tiny_model("qwen2", 128, seed=3).save_pretrained(tmp_path)
    options: dict[str, Any] = {"attention": attention, "shift": 1, "mask_token_id": MASK, "dtype": torch.float32}
    if attention == "anchored_canvas":
        drafter = load_drafter(tmp_path, block_size=3, **options)
        text = torch.arange(11)[None]
        chunk = chunk_of(session_of(drafter, drafter.model, 64), text, text[:, :0], 8)
        assert (chunk.token_ids.shape[1], chunk.passes) == (8, 3)
    target = tiny_model("qwen2", 126)
    check_parity(target, load_drafter(tmp_path, denoising_steps=2, **options), 16)
    check_parity(target, load_drafter(tmp_path, denoising_threshold=0.2, **options), 16)


@pytest.mark.parametrize("attention", ["causal", "anchored_canvas"])
def test_batches_of_uneven_length(attention: str, tmp_path: Path) -> None:
    tiny_model("qwen2", 128, seed=3).save_pretrained(tmp_path)
    drafter = load_drafter(tmp_path, attention=attention, shift=1, mask_token_id=MASK, dtype=torch.float32)
    target = tiny_model("qwen2", 126)
    prompts = torch.randint(0, 120, (3, 12), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(prompts)
    mask[1, :5] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False}
    plain = target.generate(prompts, pad_token_id=0, **settings)
    output = target.generate(
        prompts, pad_token_id=0, assistant_model=drafter, custom_generate="hf_failfast", **settings
    )
    assert output.tolist() == plain.tolist()


def test_what_is_refused(tmp_path: Path) -> None:
    body = tiny_model("qwen2", 128)
    other = save_as(body, tmp_path / "a", {"pard_token": 3, "pard2_target_dim": 64})
    with pytest.raises(ValueError, match=r"\['pard2_target_dim'\], which PARD"):
        load_drafter(other)
    causal = save_as(body, tmp_path / "b", {"text_mask_token_id": 3, "causal_attn": True})
    with pytest.raises(ValueError, match="`causal_attn` is not supported as True in a SDLM"):
        load_drafter(causal)
    with pytest.raises(ValueError, match="`block_size` must be >= 2 for anchored_canvas"):
        DrafterSpec("anchored_canvas", 0, 3, 1)
