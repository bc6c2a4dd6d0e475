"""What was learned, in a folder that `load_drafter` loads."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from ..adapter import FILE, Adapter, read_adapter
from ..bodies.borrowed import SharedBody
from ..checkpoints.reading import Checkpoint
from ..checkpoints.weights import read_weights
from ..spec import BUNDLED_DRAFTER
from .pupils import Pupil

if TYPE_CHECKING:
    from ..base import DiffusionDrafter

# Files that a merged checkpoint takes over; its weights are written anew.
TAKEN_OVER = (".json", ".txt", ".model", ".jinja")


def save_adapter(adapter: Adapter, source: Checkpoint, folder: Path) -> None:
    """The adapter with the name of the drafter's checkpoint; local ones by absolute path."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter.save(folder, _lasting_name(source.name))


def save_merged(adapter: Adapter, source: Checkpoint, folder: Path) -> None:
    """A checkpoint with the updates added to its weights, and the bias over its head beside it.

    Raises ValueError if the checkpoint's weights are in several files, or have names that the layers do not have.
    """
    origin = source.file("config.json")
    assert origin is not None  # it was loaded from there
    if folder.resolve() == Path(origin).parent.resolve():
        raise ValueError(f"`path` is the drafter's own folder {str(folder)!r}: a merged drafter needs another one.")
    weights = read_weights(source)
    stored = {_own_name(key, source, adapter): key for key in weights}
    deltas = adapter.deltas()
    if unknown := sorted(name for name in deltas if f"{name}.weight" not in stored):
        raise ValueError(
            f"`merged` does not fit {source.name!r}: its file has no {unknown[:4]} ({len(unknown)} in all)."
        )
    for name, delta in deltas.items():
        key = stored[f"{name}.weight"]
        weights[key] = (weights[key].float() + delta).to(weights[key].dtype)
    folder.mkdir(parents=True, exist_ok=True)
    for path in Path(origin).parent.iterdir():
        if path.suffix in TAKEN_OVER and path.is_file():
            shutil.copyfile(path, folder / path.name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    adapter.save(folder, _lasting_name(source.name), only_bias=True)


def adapter_file(name_or_path: str | Path) -> Path | None:
    """The adapter in a local folder, if it has one."""
    path = Path(name_or_path, FILE)
    return path if path.is_file() else None


def base_of(path: Path) -> str:
    """The checkpoint that an adapter belongs to: that of its folder, or the one that it names."""
    if (path.parent / "config.json").is_file():
        return str(path.parent)
    name = read_adapter(path)[0]["drafter"]
    return str(BUNDLED_DRAFTER) if name == BUNDLED_DRAFTER.name else name


def put_adapter(drafter: DiffusionDrafter, path: Path) -> None:
    """Loads an adapter into a drafter. Raises ValueError if it does not fit."""
    metadata, tensors = read_adapter(path)
    if "head_bias.bias" not in tensors:
        raise ValueError(f"The adapter {str(path)!r} has no `head_bias.bias`: it is incomplete.")
    Adapter(Pupil.of(drafter).body, len(tensors["head_bias.bias"]), int(metadata["rank"])).load(path)


def _own_name(key: str, source: Checkpoint, adapter: Adapter) -> str:
    """The name in the body of a stored weight."""
    if isinstance(adapter.body, SharedBody):
        return f"decoder.{key.removeprefix('model.')}"
    for pattern, replacement in source.family.weight_keys.items():
        key = re.sub(pattern, replacement, key)
    return key


def _lasting_name(name: str) -> str:
    """A checkpoint's name that means the same in another folder; the bundled drafter's on other machines, too."""
    if not Path(name).is_dir():
        return name
    path = Path(name).resolve()
    return BUNDLED_DRAFTER.name if path == BUNDLED_DRAFTER.resolve() else str(path)
