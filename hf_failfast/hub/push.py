"""Uploads an exported repository or a drafter to the Hub."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from ..drafters.checkpoints.reading import CONFIGS
from .layout import CARD

# A folder to upload holds one of these besides its card.
KINDS = ("custom_generate/generate.py", *CONFIGS)
# A drafter's folder also holds the data it was trained on.
LEFT_OUT = ("data", "__pycache__")


@dataclass(frozen=True)
class Upload:
    """What goes to the Hub. sizes: path, in the folder as in the repository -> bytes."""

    repo_id: str
    folder: Path
    sizes: dict[str, int]


def plan(repo_id: str, folder: Path) -> Upload:
    """The upload of a folder. Raises ValueError if it is neither a drafter nor an exported repository with a card."""
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder.")
    if not (folder / CARD).is_file() or not any((folder / kind).is_file() for kind in KINDS):
        raise ValueError(
            f"{str(folder)!r} is neither a drafter nor an exported repository: it needs {CARD}, and {KINDS[0]} or "
            f"{KINDS[1]}."
        )
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder): path.stat().st_size for path in files}
    return Upload(repo_id, folder, {name.as_posix(): size for name, size in names.items() if _goes(name)})


def upload(planned: Upload, private: bool) -> str:
    """Makes the repository if there is none, commits all files at once and returns the commit's address.

    Raises OSError (huggingface_hub's errors) if the Hub refuses or cannot be reached.
    """
    api = HfApi()
    api.create_repo(planned.repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=planned.repo_id,
        folder_path=planned.folder,
        allow_patterns=list(planned.sizes),
        commit_message="Upload with hf-failfast push",
    )
    return str(commit.commit_url)


def _goes(name: Path) -> bool:
    return not any(part.startswith(".") or part in LEFT_OUT for part in name.parts) and name.suffix != ".partial"
