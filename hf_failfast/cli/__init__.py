"""The `hf-failfast` command, one module each; what only one of them needs is imported inside of its function."""

from .app import app

__all__ = ["app"]
