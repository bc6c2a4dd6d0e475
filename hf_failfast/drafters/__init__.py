"""Diffusion language models as drafters.

Names that need torch are imported when one of them is asked for: a checkpoint's config can be read without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .spec import BUNDLED_DRAFTER as BUNDLED_DRAFTER
from .spec import DrafterSpec as DrafterSpec

if TYPE_CHECKING:
    from .public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    public = None if name.startswith("_") else import_module(".public", __name__)
    if public is None or name not in public.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(public, name)
