"""Diffusion language models as drafters."""

from .base import DiffusionDrafter, Draft, DraftSession
from .loading import load_drafter
from .spec import DrafterSpec

__all__ = ["DiffusionDrafter", "Draft", "DraftSession", "DrafterSpec", "load_drafter"]
