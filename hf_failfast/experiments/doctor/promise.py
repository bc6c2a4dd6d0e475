"""What a drafter's checkpoint promises: the acceptance in its training record or on its card."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...drafters.checkpoints.reading import find_file

RECORD, CARD = "training.json", "README.md"


@dataclass(frozen=True)
class Promise:
    """source: the file. accepted: the share of passes whose first 1, 2, ... draft tokens were all right."""

    source: str
    accepted: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, with the tokens of a round, the target's own one included."""
        return asdict(self) | {"mean_acceptance_length": mean_length(self.accepted)}


def mean_length(accepted: Sequence[float]) -> float:
    """Tokens of a round, given the share of rounds that accept the first 1, 2, ... draft tokens."""
    return 1 + sum(accepted)


def promise(name_or_path: str) -> Promise | None:
    """Read from the record that `hf-failfast train` writes, or a table of the card with the columns `draft position`
    and `accepted`. None if there is neither."""
    for name, read in ((RECORD, _of_record), (CARD, _of_card)):
        path = find_file(name_or_path, name, {})
        accepted = () if path is None else tuple(read(Path(path).read_text(encoding="utf-8")))
        if accepted and all(0 <= share <= 1 for share in accepted):
            return Promise(name, accepted)
    return None


def _of_record(text: str) -> Iterator[float]:
    try:
        shares = json.loads(text)["held_out"]["acceptance_by_position"]
        yield from map(float, shares)
    except (ValueError, TypeError, KeyError):  # another program's file of this name
        return


def _of_card(text: str) -> Iterator[float]:
    column = None
    for line in text.splitlines():
        cells = [cell.strip().lower() for cell in line.strip().strip("|").split("|")]
        if "draft position" in cells and "accepted" in cells:
            column = cells.index("accepted")
        elif column is not None and len(cells) > column and re.fullmatch(r"0?\.\d+|[01](\.\d*)?", cells[column]):
            yield float(cells[column])
