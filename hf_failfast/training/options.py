"""Fields of a settings dataclass that are options of `hf-failfast train`: the help text stands with the field."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

Settings = TypeVar("Settings")
_KEY = "option"


@dataclass(frozen=True)
class Option:
    """One option of the command line.

    default: None if it is not given, for which `shown` has the words.
    kind: the type that it is given in. read: turns what is given into the field's value.
    """

    name: str
    default: Any
    kind: Any
    help: str
    shown: str | None
    read: Callable[[Any], Any]

    @property
    def flag(self) -> str:
        """As it is written in a shell."""
        name = self.name.replace("_", "-")
        return f"--[no-]{name}" if self.kind is bool else f"--{name}"


def option(
    default: Any,
    help: str,
    *,
    shown: str | None = None,
    name: str | None = None,
    kind: Any = None,
    read: Callable[[Any], Any] = lambda value: value,
) -> Any:
    """A dataclass field that is an option, by default under the field's own name and type."""
    return field(default=default, metadata={_KEY: (name, None if shown else default, kind, help, shown, read)})


def options_of(settings: type) -> Iterator[tuple[str, Option]]:
    """(field name, option) of every field of a dataclass that is one."""
    for each in fields(settings):
        if _KEY in each.metadata:
            name, default, kind, *words = each.metadata[_KEY]
            yield each.name, Option(name or each.name, default, kind or each.type, *words)


def configured(settings: type[Settings], given: Mapping[str, Any]) -> Settings:
    """The dataclass from the options that were given, by option name; other names are another dataclass's."""
    options = options_of(settings)
    return settings(**{name: each.read(given[each.name]) for name, each in options if each.name in given})
