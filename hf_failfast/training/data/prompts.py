"""Where prompts come from: the target's own questions, templates, or records that the user names."""

import json
import random
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from ..config import NATURAL, DataConfig
from .answers import Writer
from .natural import NaturalPrompts
from .openings import random_opening
from .words import read_words, wordnet_folder


class PromptSource(Protocol):
    """Texts in shards; the same shard number always gives the same texts. size: how many there are, None: no end."""

    size: int | None

    def shard(self, number: int) -> list[str] | None:
        """The texts of one shard; None after the last one."""


class OwnQuestions:
    """Questions that the target writes itself: the chat template up to the user's turn, an opening, then sampling."""

    size: int | None = None

    def __init__(self, writer: Writer, config: DataConfig) -> None:
        self.writer, self.config = writer, config

    def shard(self, number: int) -> list[str]:
        """The finished questions in the order drawn; repeats within the shard are dropped."""
        config, writer = self.config, self.writer
        rng = random.Random(f"{config.seed}/{number}")
        openings = [random_opening(rng) for _ in range(config.shard_questions)]
        prefix = writer.user_prefix()
        found: dict[str, None] = {}
        with torch.random.fork_rng():
            torch.manual_seed(rng.getrandbits(48))
            for start in range(0, len(openings), config.batch_size):
                batch = openings[start : start + config.batch_size]
                sampling = {"do_sample": True, "temperature": config.temperature, "top_k": config.top_k}
                new, _ = writer.generate([prefix + opening for opening in batch], config.question_tokens, **sampling)
                for opening, row in zip(batch, new.tolist(), strict=True):
                    length = writer.answer_length(row)
                    # Without a template nothing ends a question: its opening and continuation are the prompt.
                    if not writer.has_template or row[length - 1] in writer.eos:
                        found[opening + writer.tokenizer.decode(row[:length], skip_special_tokens=True)] = None
        return list(found)


class Records:
    """Texts of a file or dataset, in its order."""

    def __init__(self, texts: Sequence[str], config: DataConfig) -> None:
        self.texts, self.per_shard = texts, config.shard_questions
        self.size: int | None = len(texts)

    def shard(self, number: int) -> list[str] | None:
        return list(self.texts[number * self.per_shard : (number + 1) * self.per_shard]) or None


class Mixture:
    """Shards of several sources in turn; one that has ended is passed over."""

    def __init__(self, parts: Sequence[PromptSource]) -> None:
        self.parts = parts
        sizes = [part.size for part in parts]
        self.size = None if None in sizes else sum(size for size in sizes if size is not None)

    def shard(self, number: int) -> list[str] | None:
        """None only after the last text of all sources."""
        turn, place = divmod(number, len(self.parts))
        texts = self.parts[place].shard(turn)
        if texts is None and self.size is not None and all(part.shard(turn) is None for part in self.parts):
            return None
        return texts or []


def prompt_source(writer: Writer, config: DataConfig) -> PromptSource:
    """Raises FileNotFoundError where `source` natural finds no words, saying how to get them."""
    if len(config.parts) > 1:
        return Mixture([prompt_source(writer, part) for part in config.parts])
    if config.file is not None:
        return Records(read_records(config), config)
    if config.origin == NATURAL:
        return NaturalPrompts(read_words(wordnet_folder()), config, continues=not writer.has_template)
    return OwnQuestions(writer, config)


def read_records(config: DataConfig) -> list[str]:
    """The texts of `config.file`: the lines of a .txt file, or a field of a .jsonl file's or dataset's records.

    Raises ValueError naming a record that has no such field or is no JSON, FileNotFoundError without the file.
    """
    assert config.file is not None
    path = Path(config.file)
    if path.suffix == ".txt":
        return _lines(path)
    field = config.field or config.records.removesuffix("s")
    if path.suffix == ".jsonl":
        lines = [(line, f"{path}:{number}") for number, line in enumerate(_lines(path), 1) if line.strip()]
        return [_field(_json(line, place), field, place) for line, place in lines]
    from datasets import load_dataset

    dataset = load_dataset(config.file, split="train", streaming=True)
    # Some records will be empty, too long or repeated: as many again are read.
    limit = 2 * config.questions + config.shard_questions
    return [_field(record, field, f"{path}: record {i}") for i, record in enumerate(islice(dataset, limit))]


def _lines(path: Path) -> list[str]:
    """The lines of a file, with or without a byte-order mark; of Unicode's separators only newlines end one."""
    with path.open(encoding="utf-8-sig") as file:
        return [line.removesuffix("\n") for line in file]


def _json(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"`source` must hold one JSON value a line, but {place} is none: {error}.") from error


def _field(record: Any, field: str, place: str) -> str:
    """A record's text; a record may be the text itself."""
    text = record.get(field) if isinstance(record, Mapping) else record
    if not isinstance(text, str):
        keys = sorted(record) if isinstance(record, Mapping) else type(record).__name__
        raise ValueError(f"`field` must name a text of every record, but {place} has no text {field!r}: {keys}.")
    return text
