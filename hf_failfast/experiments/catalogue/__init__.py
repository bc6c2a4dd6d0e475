"""The experiments by name: each is the `EXPERIMENT` of a file in this folder, `-` in its name for `_` in the file's.

Names are known without importing a file.
"""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..base import Experiment


def names() -> list[str]:
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def load(name: str) -> "Experiment":
    found: Experiment = import_module(f".{name.replace('-', '_')}", __name__).EXPERIMENT
    return found
