"""A text with the share of the drafter in colour, as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .stats import SpecDecodingStats

# Who wrote a token -> the legend, and a style that leaves the reader's own text colour readable, dark or light.
KINDS = {
    "accepted": ("drafted and accepted", "background:rgba(44,132,88,.3);border-bottom:2px solid #3f9f6f"),
    "bonus": ("the target's own", "background:rgba(197,138,43,.2)"),
    "plain": ("the target's own, nothing was drafted", "background:rgba(128,128,128,.25)"),
}
_BLOCK = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.8;max-width:60em"


class TextPieces:
    """A growing text, token by token; half a character waits for its other half."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.text = ""

    def add(self, token_id: int) -> str:
        """What the token adds to the text; special tokens add nothing."""
        self.ids.append(token_id)
        text: str = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if text.endswith("\ufffd"):
            return ""
        piece = text[len(self.text) :]
        self.text = text
        return piece


@dataclass(frozen=True)
class Written:
    """The tokens (m,) that a call has written for one prompt, and the tokenizer that it was given, if any."""

    token_ids: torch.Tensor
    tokenizer: Any = None

    def pieces(self) -> list[str]:
        """The text, token by token; without a tokenizer the ids."""
        ids = self.token_ids.tolist()
        if self.tokenizer is None:
            return [f"{token_id} " for token_id in ids]
        pieces = TextPieces(self.tokenizer)
        return [pieces.add(token_id) for token_id in ids]


def as_html(stats: SpecDecodingStats) -> str:
    """The text in colour, a legend, and the counts in words; of a batch the counts alone. The text is escaped."""
    counts = f"<p>{escape(str(stats))}</p>"
    if stats.written is None:
        return counts
    kinds = list(_kinds(stats))
    text = "".join(
        f'<span style="{KINDS[kind][1]}">{escape(piece)}</span>'
        for kind, piece in zip(kinds, stats.written.pieces(), strict=True)
    )
    legend = "&emsp;".join(
        f'<span style="{style}">{meaning}</span>' for kind, (meaning, style) in KINDS.items() if kind in kinds
    )
    hint = "" if stats.written.tokenizer is not None else "<p>For words, pass generate(..., tokenizer=tokenizer).</p>"
    return f'<div style="{_BLOCK}">{text}</div><p>{legend}</p>{counts}{hint}'


def _kinds(stats: SpecDecodingStats) -> Iterator[str]:
    """Who wrote each token of the text: in every round the accepted ones, then the target's own."""
    for record in stats.records:
        yield from ["accepted"] * record.accepted
        yield from ["bonus" if record.drafted else "plain"] * (record.emitted - record.accepted)
