"""The `hf-failfast` command, one module each; what only one of them needs is imported inside of its function."""

import sys

from .extras import require

try:
    require("demo", "typer", "rich")
except ImportError as error:  # the command of an installation without extras
    sys.exit(f"hf-failfast: {error}")

from .app import app

__all__ = ["app"]
