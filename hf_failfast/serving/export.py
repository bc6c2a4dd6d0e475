"""A DFlash drafter as vLLM's own `method: dflash` reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..drafters.checkpoints.inspection import weight_files
from ..drafters.checkpoints.reading import read_checkpoint

ARCHITECTURE = "DFlashDraftModel"


def export_for_vllm(name_or_path: str | Path, output: str | Path) -> str:
    """Writes the checkpoint to a new folder, and returns how vLLM is told of it.

    Raises ValueError on a drafter of another format, and on a folder that is not empty.
    """
    checkpoint = read_checkpoint(name_or_path, {}, {})
    if checkpoint.family.body != "dflash":
        raise ValueError(
            f"{checkpoint.name!r} is a {checkpoint.family.name} drafter, and vLLM's `method: dflash` reads DFlash's "
            "format only. Drafters that read no hidden states run in vLLM by `hf-failfast serve`."
        )
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`output` must be an empty or a new folder, but {str(folder)!r} holds something.")
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(Path(checkpoint.file("config.json") or "").read_text(encoding="utf-8"))
    config["architectures"] = [ARCHITECTURE]
    config.pop("auto_map", None)  # vLLM has its own code of this format
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in weight_files(checkpoint):
        shutil.copy(path, folder)
    index = checkpoint.file("model.safetensors.index.json")
    if index is not None:
        shutil.copy(index, folder)
    spec = checkpoint.spec  # some configs say the block size in a section, some not at all
    assert spec.block_size is not None
    num_drafted = spec.block_size - 1 + spec.shift
    told = {"method": "dflash", "model": str(folder), "num_speculative_tokens": num_drafted}
    return f"vllm serve TARGET --speculative-config '{json.dumps(told)}'"
