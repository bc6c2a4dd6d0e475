"""Diffusion language models as drafters."""

from pathlib import Path

from ..engine.causal_lm import execution_device
from ..engine.ragged import RaggedIds
from .base import DiffusionDrafter, Draft, DraftRequest, DraftSession, PerRow
from .denoising import Warp
from .loading import load_drafter, load_drafter_for
from .spec import DrafterSpec
from .wrappers.base import Wrapper
from .wrappers.conversation import Conversation
from .wrappers.fallback import DrafterErrors, FallbackSession

# The drafter that ships with the package, made for SmolLM2-135M-Instruct.
BUNDLED_DRAFTER = Path(__file__).parents[1] / "assets" / "smollm2-135m-drafter"

__all__ = [
    "BUNDLED_DRAFTER",
    "Conversation",
    "DiffusionDrafter",
    "Draft",
    "DraftRequest",
    "DraftSession",
    "DrafterErrors",
    "DrafterSpec",
    "FallbackSession",
    "PerRow",
    "RaggedIds",
    "Warp",
    "Wrapper",
    "execution_device",
    "load_drafter",
    "load_drafter_for",
]
