"""The versions of transformers that the package works with, and what differs between them."""

import warnings
from collections.abc import Mapping
from typing import Any

import transformers
from packaging.version import Version

# UNTESTED is the first version that no test has run with: it warns. From TOO_NEW on the import is refused.
OLDEST, UNTESTED, TOO_NEW = "5.17", "5.25", "6"


def check_transformers(installed: str) -> None:
    """Raises ImportError naming the range; warns of a version that is newer than those the tests ran with."""
    if not Version(OLDEST) <= Version(installed) < Version(TOO_NEW):
        raise ImportError(
            f"hf_failfast works with transformers >= {OLDEST}, < {TOO_NEW}, but {installed} is installed: "
            f'pip install "transformers>={OLDEST},<{UNTESTED}"'
        )
    if Version(installed) >= Version(f"{UNTESTED}.dev0"):
        warnings.warn(
            f"transformers {installed} is newer than what hf_failfast was tested with (>= {OLDEST}, < {UNTESTED}). If "
            f'something fails: pip install "transformers>={OLDEST},<{UNTESTED}"',
            stacklevel=2,
        )


check_transformers(transformers.__version__)

from transformers import cache_utils  # noqa: E402  (an old version may not have it)

INSTALLED = Version(transformers.__version__)
# Whether transformers' own assisted generation and prompt lookup take a static cache and compile their forwards.
COMPILES_ASSISTED = Version("5.24.0.dev0") <= INSTALLED
# Whether plain `generate` feeds the whole text again where Phi-3's rotary embeddings change; before, one token of it.
READS_WHOLE_TEXT_AGAIN = Version("5.20.0.dev0") <= INSTALLED

CACHE_NAMES = ("cache", "past_key_values")
# What a forward, an output and `generate` call the cache: transformers 5.24 renamed it.
CACHE = CACHE_NAMES[0] if Version("5.24.0.dev0") <= INSTALLED else CACHE_NAMES[1]
# What a layer has in a cache that reads another layer's K/V; older versions leave such layers out.
SHARING_LAYER: type | None = getattr(cache_utils, "DummyLayer", None)


def with_cache_name(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments, with the cache under the installed version's name. Raises ValueError if both are given."""
    given = [name for name in CACHE_NAMES if name in arguments]
    if len(given) > 1:
        raise ValueError(f"`{given[0]}` and `{given[1]}` are two names of one argument: pass one of them.")
    return {CACHE if name in CACHE_NAMES else name: value for name, value in arguments.items()}
