"""A repository that works as `custom_generate="user/repo"` where hf_failfast is not installed."""

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard, snapshot_download

from ..drafters.checkpoints.inspection import inspect_checkpoint
from ..drafters.checkpoints.reading import Checkpoint, read_checkpoint
from .card import REQUIREMENTS, repository_card
from .flatten import flat_name, flattened
from .layout import CARD, DRAFTER_CARD

ENTRY = "hub.entry"

# Files of a drafter checkpoint that are copied: neither pickles nor code, and none of its folders.
DRAFTER_SUFFIXES = {".json", ".jsonl", ".safetensors", ".txt", ".model"}


def export_hub(output: Path, drafter: str | Path | None = None, target: str | None = None) -> None:
    """Writes the repository to `output`, all of it or nothing.

    drafter: folder or Hub id of a drafter whose weights lie in the repository and are used by default.
    target: folder or Hub id of the target that it must fit; by default that of its config is named, unchecked.

    Raises ValueError if the folder is not empty or the drafter does not fit, OSError if the drafter is not found.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{str(output)!r} is there already and not an empty folder; export into a new one.")
    checkpoint = None if drafter is None else _fitting(drafter, target)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        unfinished.chmod(0o755)
        _write(unfinished, checkpoint, target)
        unfinished.rename(output)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _fitting(drafter: str | Path, target: str | None) -> Checkpoint:
    checkpoint = read_checkpoint(drafter, {}, {})
    if target is not None and (misfit := inspect_checkpoint(drafter, target).misfit):
        raise ValueError(f"{str(drafter)!r} does not fit {target!r}. {misfit}")
    return checkpoint


def _write(folder: Path, checkpoint: Checkpoint | None, target: str | None) -> None:
    code = folder / "custom_generate"
    code.mkdir()
    for name, source in flattened(ENTRY).items():
        name = "generate.py" if name == flat_name(ENTRY) + ".py" else name
        (code / name).write_text(source, encoding="utf-8")
    (code / "requirements.txt").write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")
    drafter_card = None
    if checkpoint is not None:
        weights = _local(checkpoint.name)
        for path in sorted(weights.iterdir()):
            if path.is_file() and path.suffix in DRAFTER_SUFFIXES:
                shutil.copyfile(path, folder / path.name)
        if not list(folder.glob("*.safetensors")):
            raise ValueError(f"{checkpoint.name!r} holds no weights in safetensors files, the only kind exported.")
        if (weights / CARD).is_file():
            drafter_card = ModelCard.load(weights / CARD)
            shutil.copyfile(weights / CARD, folder / DRAFTER_CARD)
    card = repository_card(checkpoint, drafter_card, target)
    (folder / CARD).write_text(card, encoding="utf-8")


def _local(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    return Path(snapshot_download(name, allow_patterns=[*(f"*{suffix}" for suffix in DRAFTER_SUFFIXES), CARD]))
