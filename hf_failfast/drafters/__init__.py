"""Diffusion language models as drafters."""

from .base import DiffusionDrafter, Draft, DraftRequest, DraftSession, PerRow
from .denoising import Warp
from .loading import load_drafter
from .spec import DrafterSpec
from .wrappers.base import Wrapper
from .wrappers.conversation import Conversation
from .wrappers.fallback import DrafterErrors, FallbackSession

__all__ = [
    "Conversation",
    "DiffusionDrafter",
    "Draft",
    "DraftRequest",
    "DraftSession",
    "DrafterErrors",
    "DrafterSpec",
    "FallbackSession",
    "PerRow",
    "Warp",
    "Wrapper",
    "load_drafter",
]
