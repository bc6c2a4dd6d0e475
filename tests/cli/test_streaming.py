"""Text as it is streamed: whole words, the drafter's share in colour, nothing coloured by rich itself."""

import io
import re

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from hf_failfast.cli.output.streaming import ColourStreamer

PIECES = ["alpha", " be", "ta", " 12", " gam", "ma", "delta", "\n", " True", " x" * 3, "é"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(PIECES)}, unk_token="alpha"))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def streamed(tokenizer: PreTrainedTokenizerFast, rounds: list[list[int]], width: int | None, colour: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=12, force_terminal=colour, color_system="standard" if colour else None)
    streamer = ColourStreamer(tokenizer, console, width)
    streamer.put(torch.tensor([[0, 0]]))  # the prompt
    for ids in rounds:
        streamer.put(torch.tensor(ids))
    streamer.end()
    return file.getvalue()


ROUNDS = [[[0, 1, 2, 3, 4, 5, 6]], [[0], [1], [2], [3], [4], [5], [6]], [[0, 1], [2, 3, 4], [5, 6]]]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_words_are_not_broken(tokenizer: PreTrainedTokenizerFast, rounds: list[list[int]]) -> None:
    """However the tokens cut the words, and the rounds the tokens, lines end between words."""
    text = streamed(tokenizer, rounds, 12, colour=False)
    assert [line.strip() for line in text.splitlines()] == ["alpha beta", "12", "gammadelta"]
    assert max(map(len, (line.rstrip() for line in text.splitlines()))) <= 12
    assert text.split() == ["alpha", "beta", "12", "gammadelta"]


def test_the_models_own_lines_stay(tokenizer: PreTrainedTokenizerFast) -> None:
    """Line ends and indentation of the text are printed as they are; a line begins at the first column."""
    assert streamed(tokenizer, [[0, 7, 9, 7, 6]], 12, colour=False) == "alpha\n x x x\ndelta\n"


def test_without_a_width_nothing_is_added(tokenizer: PreTrainedTokenizerFast) -> None:
    text = streamed(tokenizer, [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2]], None, colour=False)
    assert text == "alpha beta 12 gammadeltaalpha beta\n"


def test_only_drafted_tokens_are_coloured(tokenizer: PreTrainedTokenizerFast) -> None:
    """Accepted tokens are green and the bonus token plain; numbers and words that rich would mark are not."""
    for width in (12, None):
        text = streamed(tokenizer, [[0, 3], [8], [1, 10]], width, colour=True)
        parts = re.findall(r"\x1b\[32m([^\x1b]*)\x1b\[0m|([^\x1b]+)", text)
        assert "".join(green for green, _ in parts).replace(" ", "").strip() == "alphabe"
        assert "".join("".join(other for _, other in parts).split()) == "12True\u00e9"
