"""Speculative decoding for Hugging Face models with a diffusion language model as drafter (FailFast).

Importing the package makes `custom_generate="hf_failfast"` known to `model.generate`, and does nothing else.
"""

import warnings

from . import compatibility as compatibility  # checks the version of transformers first  # isort: split
from .config import FailFastConfig
from .decoding.loop import failfast_decoding
from .decoding.stats import SpecDecodingStats
from .decoding.transformers_loop import FailFastCandidateGenerator
from .drafters import BUNDLED_DRAFTER, Conversation, DiffusionDrafter, DrafterSpec, load_drafter
from .engine.cpu.grouped_attention import grouped_attention
from .engine.cpu.packed_weights import prepack
from .generate import assisted_generate, generate, register
from .policies.base import LengthPolicy
from .policies.confidence import ConfidenceThreshold, FixedLength
from .version import __version__

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
