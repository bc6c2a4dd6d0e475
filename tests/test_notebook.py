"""`examples/quickstart.ipynb`: stored without outputs, and runs from its first cell to its last."""

import json
import re
from time import monotonic

import pytest
from conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"
CELLS = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
MINUTES = 5


def test_it_is_stored_without_outputs() -> None:
    """Figures of another machine, or of another version, would be read as those of the reader's own run."""
    for cell in CELLS:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)


def test_its_figures_say_what_they_show() -> None:
    """Every figure has titles and axis names, and colours of one palette on no background."""
    drawn = [code for code in CODE if "plt.subplots" in code]
    assert len(drawn) >= 4
    for code in drawn:
        axes = re.search(r"subplots\((\d), (\d)", code)
        count = int(axes[1]) * int(axes[2]) if axes else 1
        for name in ("title=", "xlabel=", "ylabel="):
            assert code.count(name) == count, f"{count} axes, but not as many {name}"
        assert not re.search(r"color=[\"']", code), "a colour that is not of the palette"
    assert any('"figure.facecolor": "none"' in code for code in CODE)


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", "".join("".join(cell["source"]) for cell in CELLS))
    assert links
    assert all((NOTEBOOK.parent / link).is_file() for link in links)


@pytest.mark.exhaustive
def test_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell, within MINUTES; the text comes in colour, and every figure is drawn."""
    pytest.importorskip("nbclient")
    from hf_failfast.pairs import smollm2_folder
    from tools.notebook import executed

    smollm2_folder()  # made once, for 20 seconds
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    started = monotonic()
    cells = [cell for cell in executed(NOTEBOOK).cells if cell.cell_type == "code"]
    assert monotonic() - started < 60 * MINUTES
    shown = [output.get("data", {}) for cell in cells for output in cell.outputs]
    texts = [data["text/html"] for data in shown if "rgba(44,132,88" in data.get("text/html", "")]
    assert len(texts) == 2
    assert sum("image/png" in data for data in shown) == sum("plt.subplots" in code for code in CODE)
    printed = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert "tokens a round" in printed and "Traceback" not in printed
