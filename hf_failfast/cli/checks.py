"""What is found wrong with names, folders and installations before torch is imported."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from ..drafters.checkpoints.families import find_family
from ..drafters.checkpoints.reading import CONFIGS, read_json
from ..drafters.spec import SECTION

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_models(**names: str | None) -> None:
    """Raises BadParameter naming the option whose folder is missing or holds no checkpoint, and a target that is a
    drafter; OSError if a Hub name is out of reach. Names by option; None where the option was not given."""
    given = {option: name for option, name in names.items() if name is not None}
    for option, name in given.items():
        check_folder(option, name)
    for name in given.values():
        if not Path(name).is_dir():
            check_reach(name)


def check_folder(option: str, name: str) -> None:
    """Raises BadParameter if a folder is missing or holds no model that the option can take; a Hub name passes."""
    if Path(name).is_dir():
        config = _config(option, Path(name))
        if option == "target" and _is_drafter(config, name):
            raise _bad(option, f"{name!r} is a drafter, not a target: pass it as --drafter.")
    elif HUB_NAME.fullmatch(name) is None or name.startswith("."):
        raise _bad(option, f"there is no folder {name!r}.")


def check_reach(name: str) -> None:
    """Raises OSError if the Hub's repository is neither in the cache nor within reach, after seconds at most."""
    from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(name, config), str) for config in CONFIGS):
        return
    if is_offline_mode():
        raise OSError(
            f"{name!r} is neither a folder nor in the cache, and huggingface_hub is offline (HF_HUB_OFFLINE=1): unset "
            "HF_HUB_OFFLINE to fetch it."
        )
    check_network(constants.ENDPOINT)


def check_network(endpoint: str) -> None:
    """Raises OSError if nothing answers there; the libraries themselves try again for most of a minute."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=5)
    except Exception as error:  # of whatever HTTP library huggingface_hub uses
        raise OSError(f"The Hub ({endpoint}) cannot be reached: {str(error).splitlines()[0]}") from None


def check_parents(paths: Iterable[Path | None]) -> None:
    """Raises BadParameter if a file stands where a path to write needs a folder."""
    for path in paths:
        blocked = next((each for each in (path.parents if path else ()) if each.is_file()), None)
        if blocked is not None:
            raise typer.BadParameter(f"{str(blocked)!r} is a file, so that {str(path)!r} cannot be written.")


def _config(option: str, folder: Path) -> dict[str, Any]:
    paths = [folder / name for name in CONFIGS[: 1 if option == "target" else None] if (folder / name).is_file()]
    if not paths:
        raise _bad(option, f"the folder {str(folder)!r} has no config.json: it holds no model.")
    try:
        return read_json(paths[0])
    except ValueError as error:
        raise _bad(option, str(error)) from None


def _is_drafter(config: dict[str, Any], name: str) -> bool:
    """Whether a checkpoint can be no target: it lacks an embedding, or is of a family of diffusion language models."""
    section = config.get(SECTION) or {}
    return bool(section.get("shared_embeddings")) or ("attention" not in section and bool(find_family(config, name)))


def _bad(option: str, message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint=f"--{option}")
