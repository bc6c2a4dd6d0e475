"""Every experiment of `hf-failfast experiment`: its question, and what it varies."""

from hf_failfast.experiments import catalogue
from hf_failfast.experiments.base import Axis

from . import markdown

MOST = 8  # values that a cell lists; of more it names the ends


def table() -> str:
    found = {name: catalogue.load(name) for name in catalogue.names()}
    lines = [(f"`{name}`", each.question, each.axis and _axis(each.axis)) for name, each in found.items()]
    return markdown(("name", "question", "axis (`--values`)"), lines)


def _axis(axis: Axis) -> str:
    values = [axis.cell({axis.key: value}) for value in axis.values]
    return f"{axis.title}: " + (", ".join(values) if len(values) <= MOST else f"{values[0]} to {values[-1]}")
