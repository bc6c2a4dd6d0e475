"""Text as it is written, with the drafter's share in colour."""

import re

import torch
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from ...decoding.written import TextPieces

ACCEPTED_STYLE = "green"


class ColourStreamer(BaseStreamer):
    """Prints accepted draft tokens coloured and bonus tokens plain; the prompt is not printed.

    Each round arrives in one `put`, bonus token last. Without a terminal rich prints no colour. width: where lines are
    broken, between words; None: nowhere.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, console: Console, width: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.console = console
        self.width = width
        self._begin()

    def _begin(self) -> None:
        self.pieces = TextPieces(self.tokenizer)
        self.is_prompt = True
        self.word = Text()  # not printed yet: it may have to begin a line
        self.column = 0

    def put(self, value: torch.Tensor) -> None:
        if self.is_prompt:
            self.is_prompt = False
            return
        *accepted, bonus = value.flatten().tolist()
        for token_id in accepted:
            self._print(token_id, ACCEPTED_STYLE)
        self._print(bonus, "")

    def end(self) -> None:
        self._end_word()
        self.console.print()
        self._begin()

    def _print(self, token_id: int, style: str) -> None:
        piece = self.pieces.add(token_id)
        if self.width is None:
            if piece:
                self.console.print(Text(piece, style=style), end="", soft_wrap=True)
            return
        for part in re.findall(r"\S+|\s", piece):
            if part.isspace():
                self._end_word()
                self._write(Text(part, style=style))
            else:
                self.word.append(part, style=style)

    def _end_word(self) -> None:
        """Prints the word that has come to its end, on a line of its own if it does not fit into this one."""
        if self.width is not None and self.column and self.column + self.word.cell_len > self.width:
            self._write(Text("\n"))
        self._write(self.word)
        self.word = Text()

    def _write(self, text: Text) -> None:
        if text.plain:
            self.console.print(text, end="", soft_wrap=True)
            self.column = 0 if text.plain == "\n" else self.column + text.cell_len
