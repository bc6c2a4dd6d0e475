"""What is missing of an installation, and the command that installs it; imports nothing that could be missing."""

import importlib.util


def require(extra: str, *modules: str) -> None:
    """Raises ImportError saying what to install if one of an extra's modules is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"This needs {missing[0]}: {install(extra)}.")


def install(extra: str) -> str:
    """The command that installs an extra of the package."""
    return f'pip install "hf_failfast[{extra}]", or in a checkout pip install -e ".[{extra}]"'
