"""Prompts out of any JSONL file, MT-Bench's, Spec-Bench's or one's own, and of the lines of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import DatasetDict

# In this order; `turns` is MT-Bench's and Spec-Bench's, and its first turn is asked.
PROMPT_KEYS = ("turns", "prompt", "question", "instruction", "text")


def prompts_dataset(prompts: str | None = None, **metadata: Any) -> DatasetDict:
    """The lm-eval dataset of `failfast_prompts`, from `--metadata '{"prompts": "<file>"}'`."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list(read_prompts(prompts))})


def read_prompts(path: str | Path | None) -> list[dict[str, str]]:
    """One row, with `prompt` and `category`, per line of a file that is not blank.

    A line of a `.txt` file is a prompt, one of any other file an object with one of `PROMPT_KEYS`. Raises ValueError
    naming the file and the line that is neither.
    """
    if path is None:
        raise ValueError('`prompts` must name a JSONL file: --metadata \'{"prompts": "<file>"}\'.')
    if not Path(path).is_file():
        raise ValueError(f"`prompts` must name a JSONL file, but there is none at {str(path)!r}.")
    with open(path, encoding="utf-8-sig") as file:  # a byte-order mark is no part of the text
        lines = [(number, line.rstrip("\n")) for number, line in enumerate(file, 1) if line.strip()]
    if Path(path).suffix == ".txt":
        rows = [{"prompt": line, "category": ""} for _, line in lines]
    else:
        rows = [_row(line, f"{path}, line {number}") for number, line in lines]
    if not rows:
        raise ValueError(f"`prompts` must hold at least one prompt, but {str(path)!r} is empty.")
    return rows


def _row(line: str, place: str) -> dict[str, str]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error.msg}.") from None
    if not isinstance(record, dict):
        raise ValueError(f"{place} must be a JSON object, but is a {type(record).__name__}.")
    key = next((key for key in PROMPT_KEYS if record.get(key)), None)
    if key is None:
        raise ValueError(f"{place} has none of the keys {list(PROMPT_KEYS)}, only {sorted(record)}.")
    prompt = record[key][0] if isinstance(record[key], list) else record[key]
    if not isinstance(prompt, str):
        raise ValueError(f"{place}: `{key}` must be a text or a list of texts, but is {record[key]!r}.")
    return {"prompt": prompt, "category": str(record.get("category", ""))}
