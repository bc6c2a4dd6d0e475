"""`inspect` says what the loader does, for right and for wrong checkpoints and pairs, and reads no weight for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DRAFTERS, saved_drafter
from family_support import DATA, copy_checkpoint, tiny_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import hf_failfast
from hf_failfast import load_drafter
from hf_failfast.drafters import loading
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint

CHECKPOINTS = sorted(path.relative_to(DATA).as_posix() for path in DATA.glob("*/*/checkpoint"))

REDUCED = ("sdar/case_2", "fastdllm_v2/case_1")  # their public mask id lies beyond their reduced vocabulary


def loaded(folder: Path | str, target: PreTrainedModel | None = None, **given: Any) -> str | None:
    """What loading it, and starting it for the target, raises."""
    try:
        drafter = load_drafter(folder, **given)
        if target is not None:
            drafter.start(hf_failfast.drafters.DraftRequest(target, capacity=8))
    except (ValueError, OSError) as error:
        return str(error)
    return None


def inspected(folder: Path | str, target: Path | None = None, **given: Any) -> str | None:
    try:
        return inspect_checkpoint(folder, target, **given).misfit
    except (ValueError, OSError) as error:
        return str(error)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, PreTrainedModel]:
    """Targets of several vocabularies, widths and depths."""
    found = {}
    for vocab_size, sizes in ((80, {}), (96, {"hidden_size": 48}), (240, {"hidden_size": 40, "num_hidden_layers": 5})):
        model = tiny_model("qwen3", vocab_size, **sizes)
        folder = tmp_path_factory.mktemp("target")
        model.save_pretrained(folder)
        found[folder] = model
    return found


@pytest.mark.parametrize("folder", CHECKPOINTS)
def test_every_checkpoint_of_the_tests(folder: str, targets: dict[Path, PreTrainedModel]) -> None:
    """The same answer, word for word, from both, for each target and for none."""
    path = DATA / folder
    given = {"mask_token_id": 7} if folder.startswith(REDUCED) else {}
    for options in ({}, given):
        assert inspected(path, **options) == loaded(path, **options)
        for target_folder, target in targets.items():
            assert inspected(path, target_folder, **options) == loaded(path, target, **options)
    own = path.parent / "target"
    if own.is_dir():
        assert inspect_checkpoint(path, own).misfit is None


@pytest.mark.parametrize("kind", DRAFTERS)
def test_our_own_drafters(kind: str, targets: dict[Path, PreTrainedModel]) -> None:
    folder = saved_drafter(kind)
    assert inspected(folder) == loaded(folder)
    for target_folder, target in targets.items():
        assert inspected(folder, target_folder) == loaded(folder, target)


def test_the_bundled_drafter(targets: dict[Path, PreTrainedModel]) -> None:
    """It borrows the target's embedding, so that width and vocabulary count."""
    for target_folder, target in targets.items():
        assert inspected(hf_failfast.BUNDLED_DRAFTER, target_folder) == loaded(hf_failfast.BUNDLED_DRAFTER, target)


@pytest.mark.parametrize("folder", CHECKPOINTS)
@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "truncated", "pickle", "key", "none"])
def test_faults_are_told_as_the_loader_tells_them(folder: str, fault: str, tmp_path: Path) -> None:
    """`inspect` looked at the config only, and called each of these a good checkpoint."""
    changes = {"an_unknown_key": 1} if fault == "key" else {}
    copy = copy_checkpoint(folder, tmp_path / "a", **changes)
    path = copy / "model.safetensors"
    weights = load_file(path)
    name = next(key for key in sorted(weights) if key.endswith("weight") and weights[key].ndim == 2)
    if fault == "missing":
        del weights[name]
    elif fault == "unexpected":
        weights["something.else.weight"] = torch.zeros(3)
    elif fault == "shape":
        weights[name] = weights[name][:-1].clone()
    if fault in ("missing", "unexpected", "shape"):
        save_file(weights, path, metadata={"format": "pt"})
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif fault in ("pickle", "none"):
        path.unlink()
    if fault == "pickle":
        torch.save(weights, copy / "pytorch_model.bin")
    found = loaded(copy)
    assert found is not None
    assert inspected(copy) == found


def test_no_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of the inspected drafter is on the meta device; our own checkpoint needs no drafter."""
    drafters = []
    load = loading.load_checkpoint

    def record(*arguments: Any, **options: Any) -> Any:
        drafters.append(load(*arguments, **options))
        return drafters[-1]

    monkeypatch.setattr(loading, "load_checkpoint", record)
    for folder in (*(DATA / name for name in CHECKPOINTS), hf_failfast.BUNDLED_DRAFTER):
        is_reduced = any(name in str(folder) for name in REDUCED)
        inspect_checkpoint(folder, **({"mask_token_id": 7} if is_reduced else {}))
    parameters = [weights for drafter in drafters for module in drafter.modules() for weights in module.parameters()]
    assert len(drafters) == len(CHECKPOINTS)
    assert {weights.device.type for weights in parameters} == {"meta"}


def test_what_a_pass_drafts(tmp_path: Path) -> None:
    """A block size inside of `dflash_config` counts, and so does a draft that begins at the anchor's row."""
    assert inspect_checkpoint(DATA / "dflash" / "case_6" / "checkpoint").chunk_per_pass == 7
    folder = copy_checkpoint("dflash/case_6/checkpoint", tmp_path / "a", shift_label=True)
    assert inspect_checkpoint(folder).chunk_per_pass == 8
