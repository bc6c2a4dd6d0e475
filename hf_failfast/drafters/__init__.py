"""Diffusion language models as drafters.

Names that need torch are imported when one of them is asked for: a checkpoint's config can be read without.
"""

from typing import TYPE_CHECKING, Any

from .spec import BUNDLED_DRAFTER, DrafterSpec

if TYPE_CHECKING:
    from .public import (
        Conversation,
        DiffusionDrafter,
        Draft,
        DrafterErrors,
        DraftRequest,
        DraftSession,
        FallbackSession,
        Learning,
        PerRow,
        RaggedIds,
        Warp,
        Wrapper,
        execution_device,
        load_drafter,
        load_drafter_for,
    )

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
    "Learning",
    "PerRow",
    "RaggedIds",
    "Warp",
    "Wrapper",
    "execution_device",
    "load_drafter",
    "load_drafter_for",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import public

    return getattr(public, name)
