"""Where the benchmarks write, and how."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def store(document: dict[str, Any], path: Path) -> None:
    """Writes a document to a JSON file and prints it in one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))
