"""Text as it is written, with the drafter's share in colour."""

import torch
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

ACCEPTED_STYLE = "green"


class TextPieces:
    """A growing text, token by token; half a character waits for its other half."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.text = ""

    def add(self, token_id: int) -> str:
        """What the token adds to the text; special tokens add nothing."""
        self.ids.append(token_id)
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if text.endswith("\ufffd"):
            return ""
        piece = text[len(self.text) :]
        self.text = text
        return piece


class ColourStreamer(BaseStreamer):
    """Prints accepted draft tokens coloured and bonus tokens plain; the prompt is not printed.

    Each round arrives in one `put`, bonus token last. Without a terminal rich prints no colour.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
        self.tokenizer = tokenizer
        self.console = console
        self.pieces = TextPieces(tokenizer)
        self.is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self.is_prompt:
            self.is_prompt = False
            return
        *accepted, bonus = value.flatten().tolist()
        for token_id in accepted:
            self._print(token_id, ACCEPTED_STYLE)
        self._print(bonus, "")

    def end(self) -> None:
        self.console.print()
        self.pieces, self.is_prompt = TextPieces(self.tokenizer), True

    def _print(self, token_id: int, style: str) -> None:
        piece = self.pieces.add(token_id)
        if piece:
            self.console.print(Text(piece, style=style), end="", soft_wrap=True)
