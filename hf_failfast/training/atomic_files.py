"""Files that are whole or absent, whatever interrupts the writing."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write. When the context ends it replaces `path` at once; after an error `path` stays as it was.

    Raises OSError naming `path` if it cannot be written, on a full disk for example.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:  # the last two are safetensors' and torch's
        raise OSError(f"{path} could not be written: {error}. What was there before is kept.") from error
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
