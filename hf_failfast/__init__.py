"""Speculative decoding for Hugging Face models with a diffusion language model as drafter (FailFast).

Importing the package makes `custom_generate="hf_failfast"` known to `model.generate`, and does nothing else.
Its commands read their options first: in their process the public names are left out, and torch with them.
"""

import sys
import warnings
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
    from .config import FailFastConfig
    from .decoding.loop import failfast_decoding
    from .decoding.stats import SpecDecodingStats
    from .decoding.transformers_loop import FailFastCandidateGenerator
    from .drafters import BUNDLED_DRAFTER, Conversation, DiffusionDrafter, DrafterSpec, Learning, load_drafter
    from .engine.cpu.grouped_attention import grouped_attention
    from .engine.cpu.packed_weights import prepack
    from .generate import assisted_generate, generate, register
    from .policies.base import LengthPolicy
    from .policies.confidence import ConfidenceThreshold, FixedLength

    register()

__all__ = [
    "BUNDLED_DRAFTER",
    "ConfidenceThreshold",
    "Conversation",
    "DiffusionDrafter",
    "DrafterSpec",
    "FailFastCandidateGenerator",
    "FailFastConfig",
    "FixedLength",
    "Learning",
    "LengthPolicy",
    "SpecDecodingStats",
    "__version__",
    "assisted_generate",
    "failfast_decoding",
    "generate",
    "grouped_attention",
    "load_drafter",
    "prepack",
]


def __getattr__(name: str) -> object:
    if name == "DraftSession":
        warnings.warn("`hf_failfast.DraftSession` is called `Conversation` now.", FutureWarning, stacklevel=2)
        return Conversation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
