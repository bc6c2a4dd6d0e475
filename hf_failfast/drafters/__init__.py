"""Diffusion language models as drafters."""

from .base import BatchSession, DiffusionDrafter, Draft, DraftSession, start
from .denoising import Warp
from .loading import load_drafter
from .spec import DrafterSpec

__all__ = ["BatchSession", "DiffusionDrafter", "Draft", "DraftSession", "DrafterSpec", "load_drafter", "start", "Warp"]
