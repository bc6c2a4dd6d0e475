"""Checkpoints that are wrong are refused, by name; `inspect` says what a right one is."""

import json
from pathlib import Path

import pytest
import torch
from family_support import DATA, check_parity, copy_checkpoint, save_as, tiny_model
from safetensors.torch import load_file, save_file
from sessions import session_of

from hf_failfast import DrafterSpec, load_drafter
from hf_failfast.drafters.checkpoints.families import FAMILIES, bodies
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint

DREAM = DATA / "dream" / "case_1" / "checkpoint"


def change_weights(folder: Path, **renamed: str | None) -> Path:
    """Renames (or drops) weights by the last part but one of their name."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for old, new in renamed.items():
        key = next(key for key in weights if f".{old}." in key)
        value = weights.pop(key)
        if new is not None:
            weights[key.replace(old, new)] = value
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def test_renamed_and_missing_weights_are_listed(tmp_path: Path) -> None:
    folder = change_weights(copy_checkpoint("dream/case_1/checkpoint", tmp_path / "a"), q_proj="query", k_proj=None)
    with pytest.raises(ValueError, match=r"missing \[.*k_proj.*q_proj.*\] \(\d in all\), unexpected \[.*query.*\]"):
        load_drafter(folder)


def test_truncated_weights(tmp_path: Path) -> None:
    folder = copy_checkpoint("dream/case_1/checkpoint", tmp_path / "a")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load_drafter(folder)
    with pytest.raises(ValueError, match="damaged or incomplete"):
        inspect_checkpoint(folder)


def test_weights_of_another_shape(tmp_path: Path) -> None:
    folder = copy_checkpoint("dream/case_1/checkpoint", tmp_path / "a", intermediate_size=96)
    with pytest.raises(ValueError, match="do not fit its config"):
        load_drafter(folder)


def test_pickles_are_refused_unless_asked_for(tmp_path: Path) -> None:
    folder = copy_checkpoint("dream/case_1/checkpoint", tmp_path / "a")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        load_drafter(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle.*`allow_pickle=True`"):
        load_drafter(folder)
    assert load_drafter(folder, allow_pickle=True).spec.mask_token_id == 228


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    """Refuses an unknown model type with `auto_map` and code beside it, and does not import that code."""
    folder = copy_checkpoint("dream/case_1/checkpoint", tmp_path / "a", model_type="Dreams")
    for module in ("configuration_dream.py", "modeling_dream.py"):
        (folder / module).write_text("raise SystemExit('the code of the checkpoint was run')")
    with pytest.raises(ValueError, match=r"'Dreams'.*own code is never run.*nearest known family is Dream"):
        load_drafter(folder)
    known = copy_checkpoint("dream/case_1/checkpoint", tmp_path / "b")
    (known / "modeling_dream.py").write_text("raise SystemExit('the code of the checkpoint was run')")
    load_drafter(known)


def test_an_unknown_causal_lm_needs_a_spec_and_works_with_one(tmp_path: Path) -> None:
    folder = save_as(tiny_model("qwen2", 128), tmp_path / "anything", {})
    with pytest.raises(
        ValueError, match=r"does not say how it drafts: pass `attention=`.*nearest known family is Fast"
    ):
        load_drafter(folder)
    with pytest.raises(ValueError, match="pass `mask_token_id=`"):
        load_drafter(folder, attention="bidirectional")
    with pytest.raises(ValueError, match="`block_size` must be an integer >= 1"):
        load_drafter(folder, attention="block_causal", mask_token_id=127)
    with pytest.raises(ValueError, match="`mask_token_id` must be < 128"):
        load_drafter(folder, attention="bidirectional", mask_token_id=128)
    drafter = load_drafter(folder, attention="bidirectional", shift=True, mask_token_id=127)
    assert drafter.spec == DrafterSpec("bidirectional", 1, 127)
    check_parity(tiny_model("qwen2", 126, seed=1), drafter, tokens=12)


def test_an_a2d_checkpoint_of_unclear_name_is_not_guessed(tmp_path: Path) -> None:
    """Refuses a model type of two attentions without `mdlm` or `bd3lm` in the name, until the caller says which."""
    folder = save_as(tiny_model("qwen3", 128, head_dim=8), tmp_path / "mine", {"model_type": "a2d-qwen3"})
    with pytest.raises(ValueError, match=r"pass `attention=`.*nearest known family is dllm"):
        load_drafter(folder, mask_token_id=127)
    assert load_drafter(folder, mask_token_id=127, attention="bidirectional").spec.shift == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"denoising_steps": 0}, "`denoising_steps` must be an integer >= 1"),
        ({"denoising_threshold": 1.5}, r"`denoising_threshold` must be a number in \[0, 1\]"),
        ({"denoising_threshold": 0.5, "denoising_steps": 2}, "not both"),
        ({"prefix_block": 0}, "`prefix_block` must be"),
        ({"attention": "causal_canvas", "prefix_block": 8}, "needs bidirectional attention"),
        ({"attention": "sideways"}, "`attention` must be one of"),
        ({"alignment": "free", "attention": "block_causal", "block_size": 8}, "`alignment` can be 'free' only"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_drafter(DREAM, **options)


def test_a_target_of_another_tokenizer_is_refused() -> None:
    drafter = load_drafter(DREAM)
    with pytest.raises(ValueError, match="cannot come from the same tokenizer"):
        session_of(drafter, tiny_model("qwen2", 96), 64)


def test_every_family_has_a_body_that_exists() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    assert all(body in CONFIG_MAPPING for body in bodies().values())
    assert all(family.spec["attention"] for family in FAMILIES)


def test_inspect_reads_headers_only(tmp_path: Path) -> None:
    weights = load_file(DREAM / "model.safetensors")
    found = inspect_checkpoint(DREAM)
    assert found.family == "Dream / DiffuCoder"
    assert found.spec == DrafterSpec("bidirectional", 1, 228)
    assert found.parameters == sum(value.numel() for value in weights.values())
    assert found.weight_bytes == 2 * found.parameters
    assert found.dtypes == ("BF16",)
    assert ("mask id", "228") in found.rows()
    assert found.misfit is None
    for size, fits in ((230, True), (96, False)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": size}))
        misfit = inspect_checkpoint(DREAM, target=tmp_path).misfit
        assert (misfit is None) == fits
    blocks = inspect_checkpoint(DATA / "sdar" / "case_1" / "checkpoint")
    assert (blocks.chunk_per_pass, blocks.spec.block_size) == (4, 4)


def test_sharded_weights(tmp_path: Path) -> None:
    drafter = load_drafter(DREAM)
    drafter.model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    config = json.loads((DREAM / "config.json").read_text())
    (tmp_path / "sharded" / "config.json").write_text(json.dumps(config))
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    assert inspect_checkpoint(tmp_path / "sharded").parameters == inspect_checkpoint(DREAM).parameters
    again = load_drafter(tmp_path / "sharded")
    assert all(torch.equal(*pair) for pair in zip(drafter.model.parameters(), again.model.parameters(), strict=True))
