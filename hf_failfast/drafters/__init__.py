"""Diffusion language models as drafters.

Names that need torch are imported when one of them is asked for: a checkpoint's config can be read without.
"""

import sys
from typing import TYPE_CHECKING, Any

from .spec import BUNDLED_DRAFTER as BUNDLED_DRAFTER
from .spec import DrafterSpec as DrafterSpec

if TYPE_CHECKING:
    from .public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        from .public import __all__ as names
        from .public import __name__ as module

        if name in names:
            return getattr(sys.modules[module], name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
