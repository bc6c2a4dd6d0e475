"""Speculative decoding for Hugging Face models with a diffusion language model as drafter (FailFast).

Importing the package makes `custom_generate="hf_failfast"` known to `model.generate`, and does nothing else.
Its commands read their options first: in their process the public names wait until someone asks for them, and torch
with them.
"""

import sys
import warnings
from importlib import import_module
from pathlib import Path

from .version import __version__


def _is_command() -> bool:
    """Whether this process is `hf-failfast` or `hf-failfast-eval`, by its script or with `python -m`."""
    if sys.argv[0] == "-m":  # the module is not known yet: of the interpreter's words it is the last before ours
        module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
        return module.startswith((f"{__name__}.cli", f"{__name__}.eval"))
    return Path(sys.argv[0]).stem in ("hf-failfast", "hf-failfast-eval")


if not _is_command():
    from . import compatibility as compatibility  # checks the version of transformers first  # isort: split
    from .generate import register
    from .public import *  # noqa: F403
    from .public import __all__ as _names

    __all__ = ["__version__", *_names]
    register()


def __getattr__(name: str) -> object:
    """The names that a command's process has left out, once someone asks for them, and one by its old name."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public = import_module(".public", __name__)
    if name == "DraftSession":
        warnings.warn("`hf_failfast.DraftSession` is called `Conversation` now.", FutureWarning, stacklevel=2)
        name = "Conversation"
    if name not in public.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(public, name)
