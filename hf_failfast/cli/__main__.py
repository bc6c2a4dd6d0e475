"""`python -m hf_failfast.cli`: the `hf-failfast` command."""

from .app import app

if __name__ == "__main__":
    app()
