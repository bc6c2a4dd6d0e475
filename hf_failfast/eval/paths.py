"""Where the task files and the metric modules are, in a source tree as well as in an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
_SOURCE_TREE = _PACKAGE.parents[1]

# The YAML files: `eval/` of the repository, which a wheel carries as `hf_failfast.eval.tasks`.
TASKS = next(folder for folder in (_PACKAGE / "tasks", _SOURCE_TREE / "eval") if folder.is_dir())

# Folders that `evaluate.load` takes.
EVALUATE_MODULES = _PACKAGE / "evaluate_modules"

if __name__ == "__main__":
    print(TASKS)
