"""`python -m tools.notebook`: executes examples/quickstart.ipynb into build/quickstart.ipynb, for the site."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
OUT = ROOT / "build" / NOTEBOOK.name
MINUTES = 10  # after which a cell is ended


def executed(path: Path = NOTEBOOK) -> nbformat.NotebookNode:
    """The notebook with its outputs, from a kernel of this Python, without the bars of loading on stderr. Raises the
    first error of a cell."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=60 * MINUTES, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    OUT.parent.mkdir(exist_ok=True)
    nbformat.write(executed(), OUT)
    print(f"wrote {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
