"""The version, in the one place; `hf-failfast export-hub` writes it into what it exports."""

__version__ = "0.1.0"
