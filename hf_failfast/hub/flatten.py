"""The package's modules as files of one folder: transformers copies no sub-packages with `custom_generate`.

Of a repository it fetches `custom_generate/generate.py` and, one after another, the files beside it that are named in
`from .name import ...` statements (`transformers.dynamic_module_utils`). So `hf_failfast/drafters/base.py` becomes
`failfast_drafters_base.py`, and each relative import names the new file; nothing else in a file changes.
"""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
PREFIX = "failfast"

_RELATIVE = re.compile(r"from\s+\.+[\w.]*\s+import\b")


def flattened(*entries: str, package: Path = PACKAGE) -> dict[str, str]:
    """File name -> source of the modules named by `entries` ("drafters.base") and of all that they import.

    Raises ValueError naming file and line of an import that a flat folder cannot express.
    """
    sources: dict[str, str] = {}
    todo = list(entries)
    while todo:
        module = todo.pop()
        if flat_name(module) + ".py" in sources:
            continue
        source, imported = _rewritten(module, package)
        sources[flat_name(module) + ".py"] = source
        todo.extend(imported)
    return sources


def flat_name(module: str) -> str:
    """The flat module that stands for a module of the package."""
    return "_".join([PREFIX, *module.split(".")])


def _rewritten(module: str, package: Path) -> tuple[str, list[str]]:
    """(source with flat imports, modules of the package that it imports)."""
    path = package / Path(*module.split("."))
    is_package = path.is_dir()
    path = path / "__init__.py" if is_package else path.with_suffix(".py")
    parents = module.split(".") if is_package else module.split(".")[:-1]
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    imported = []
    for node in ast.walk(ast.parse(source)):
        _refuse_absolute(node, path, package.name)
        if isinstance(node, ast.ImportFrom) and node.level:
            found = _RELATIVE.match(lines[node.lineno - 1], node.col_offset)
            if node.module is None or found is None or node.level > len(parents) + 1:
                raise ValueError(
                    f"{path}:{node.lineno}: only `from .module import name` on one line can be exported to a flat "
                    "folder."
                )
            imported.append(".".join([*parents[: len(parents) + 1 - node.level], node.module]))
            line = lines[node.lineno - 1]
            statement = f"from .{flat_name(imported[-1])} import"
            lines[node.lineno - 1] = line[: found.start()] + statement + line[found.end() :]
    return "".join(lines), imported


def _refuse_absolute(node: ast.AST, path: Path, package: str) -> None:
    """Where the package is not installed, its full name leads nowhere."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = [node.module]
    else:
        return
    if any(name.split(".")[0] == package for name in names):
        raise ValueError(f"{path}:{node.lineno}: only relative imports of {package} can be exported to a flat folder.")
