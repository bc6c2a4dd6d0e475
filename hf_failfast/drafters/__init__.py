"""Diffusion language models as drafters."""

from .base import BatchSession, DiffusionDrafter, Draft, RowSession, start
from .denoising import Warp
from .guard import DrafterErrors, GuardedSession
from .kept import DraftSession
from .loading import load_drafter
from .spec import DrafterSpec

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
