"""The versions of transformers that the package works with; checked before anything else of it is imported."""

import transformers
from packaging.version import Version

OLDEST, TOO_NEW = "5.17", "6"


def check_transformers(installed: str) -> None:
    """Raises ImportError naming the range."""
    if not Version(OLDEST) <= Version(installed) < Version(TOO_NEW):
        raise ImportError(
            f"hf_failfast works with transformers >= {OLDEST}, < {TOO_NEW}, but {installed} is installed: "
            f'pip install "transformers>={OLDEST},<{TOO_NEW}"'
        )


check_transformers(transformers.__version__)
