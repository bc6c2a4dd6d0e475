"""The package's modules as files of one folder: transformers copies no sub-packages with `custom_generate`.

Of a repository it fetches `custom_generate/generate.py` and, one after another, the files beside it that are named in
`from .name import ...` statements, and it refuses code that imports a package which is not installed, unless it stands
under a `try` (`transformers.dynamic_module_utils`). So `hf_failfast/drafters/base.py` becomes
`failfast_drafters_base.py`, relative imports name the new files, and `import triton` stands under a `try`. Nothing
else changes.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
PREFIX = "failfast"

# What every installation of transformers with torch has.
ALWAYS_THERE = {"torch", "transformers", "safetensors", "huggingface_hub", *sys.stdlib_module_names}

_RELATIVE = re.compile(r"from\s+\.+[\w.]*\s+import\b")


def flattened(*entries: str, package: Path = PACKAGE) -> dict[str, str]:
    """File name -> source of the modules named by `entries` ("drafters.base") and of all that they import.

    Raises ValueError naming file and line of an import that a flat folder cannot express.
    """
    sources: dict[str, str] = {}
    todo = list(entries)
    while todo:
        module = _Module(todo.pop(), package)
        if module.file_name not in sources:
            sources[module.file_name] = module.rewritten()
            todo.extend(module.imported)
    return sources


def flat_name(module: str) -> str:
    """The flat module that stands for a module of the package."""
    return "_".join([PREFIX, *module.split(".")])


class _Module:
    """One module and its new source. imported: the modules of the package that it names, known after `rewritten`."""

    def __init__(self, name: str, package: Path) -> None:
        self.file_name = flat_name(name) + ".py"
        self.package = package
        self.path = package / Path(*name.split("."))
        is_package = self.path.is_dir()
        self.path = self.path / "__init__.py" if is_package else self.path.with_suffix(".py")
        self.parents = name.split(".") if is_package else name.split(".")[:-1]
        self.lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        self.imported: list[str] = []

    def rewritten(self) -> str:
        for node in ast.walk(ast.parse("".join(self.lines))):
            if isinstance(node, ast.ImportFrom) and node.level:
                self._rewrite_relative(node)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self._rewrite_absolute(node)
            elif (
                isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and len(node.args) > 1
            ):
                raise self._cannot(node, "an import by a relative name that is made at run time")
        return "".join(self.lines)

    def _rewrite_relative(self, node: ast.ImportFrom) -> None:
        found = _RELATIVE.match(self.lines[node.lineno - 1], node.col_offset)
        if found is None or node.level > len(self.parents) + 1:
            raise self._cannot(node, "a relative import over several lines or out of the package")
        base = self.parents[: len(self.parents) + 1 - node.level] + (node.module.split(".") if node.module else [])
        if node.module is None or any(self._is_module([*base, alias.name]) for alias in node.names):
            self._replace(node, self._imports_of_modules(node, base))
        else:
            self.imported.append(".".join(base))
            line = self.lines[node.lineno - 1]
            statement = f"from .{flat_name(self.imported[-1])} import"
            self.lines[node.lineno - 1] = line[: found.start()] + statement + line[found.end() :]

    def _is_module(self, parts: list[str]) -> bool:
        return any((self.package / Path(*parts)).with_suffix(suffix).exists() for suffix in ("", ".py"))

    def _imports_of_modules(self, node: ast.ImportFrom, base: list[str]) -> Iterator[str]:
        """`from . import a`, `from .package import a`: its file has to be named in a statement of the only form that
        transformers reads."""
        for alias in node.names:
            module = [*base, alias.name]
            if not self._is_module(module):
                raise self._cannot(node, f"`{alias.name}`, which is no module, from a package's `__init__`")
            self.imported.append(".".join(module))
            flat = flat_name(self.imported[-1])
            yield f"from .{flat} import __name__ as _{flat}"
            yield f"from . import {flat} as {alias.asname or alias.name}"

    def _rewrite_absolute(self, node: ast.Import | ast.ImportFrom) -> None:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
        packages = {name.split(".")[0] for name in names}
        if self.package.name in packages:
            raise self._cannot(node, "an import of the package by its full name")
        if packages - ALWAYS_THERE:
            self._replace(node, iter(["try:", f"    {ast.unparse(node)}", "except ImportError:", "    raise"]))

    def _replace(self, node: ast.stmt, statements: Iterator[str]) -> None:
        """Puts other statements in the place of one that has its line for itself."""
        line = self.lines[node.lineno - 1]
        indent = line[: node.col_offset]
        if node.end_lineno != node.lineno or indent.strip() or ";" in line:
            raise self._cannot(node, "an import that does not have one line for itself")
        self.lines[node.lineno - 1] = "".join(f"{indent}{statement}\n" for statement in statements)

    def _cannot(self, node: ast.expr | ast.stmt, what: str) -> ValueError:
        return ValueError(f"{self.path}:{node.lineno}: {what} cannot be exported to a flat folder.")
