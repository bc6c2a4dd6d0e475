"""Diffusion language models as drafters."""

from .base import BatchSession, DiffusionDrafter, Draft, RowSession, start
from .denoising import Warp
from .loading import load_drafter
from .spec import DrafterSpec
from .wrappers.conversation import DraftSession
from .wrappers.fallback import DrafterErrors, GuardedSession

__all__ = [
    "BatchSession",
    "DiffusionDrafter",
    "Draft",
    "DraftSession",
    "DrafterErrors",
    "DrafterSpec",
    "GuardedSession",
    "RowSession",
    "Warp",
    "load_drafter",
    "start",
]
