"""The public names of `drafters` that need torch."""

from ..engine.causal_lm import execution_device
from ..engine.ragged import RaggedIds
from .base import DiffusionDrafter, Draft, DraftRequest, DraftSession, PerRow
from .denoising import Warp
from .loading import load_drafter, load_drafter_for
from .wrappers.base import Wrapper
from .wrappers.conversation import Conversation
from .wrappers.fallback import DrafterErrors, FallbackSession
from .wrappers.learning import Learning
from .wrappers.overlap import OverlapSession

__all__ = [
    "Conversation",
    "DiffusionDrafter",
    "Draft",
    "DraftRequest",
    "DraftSession",
    "DrafterErrors",
    "FallbackSession",
    "Learning",
    "OverlapSession",
    "PerRow",
    "RaggedIds",
    "Warp",
    "Wrapper",
    "execution_device",
    "load_drafter",
    "load_drafter_for",
]
