"""Prompts and the target's answers to them, kept on disk in shards that a killed run resumes."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..atomic_files import write_json
from ..config import NATURAL, SELF_WRITTEN, DataConfig
from ..progress import Progress
from .answers import Writer
from .loops import without_loops
from .prompts import prompt_source
from .shards import Example, load_shard, save_shard
from .unseen import unseen_prompts

MANIFEST = "manifest.json"
# As manifests and cards call them.
SOURCES = {
    SELF_WRITTEN: "questions written by the target itself",
    NATURAL: "natural prompts from templates and WordNet's words",
}


def synthesise(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    folder: Path,
    name: str,
    console: Console | None = None,
) -> dict[str, Any]:
    """Adds shards to `folder` until it holds `config.questions` prompts for the target called `name`, or until the
    source is used up.

    Returns the manifest. A shard depends on the settings, its number and the prompts before it: a resumed run writes
    the same tokens (and the same states up to rounding).
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _checked_manifest(folder, name, config)
    shards = manifest["shards"]
    seen = {prompt for shard in shards for prompt in _prompts(folder / shard["file"])}
    writer = Writer(target, tokenizer, config)
    if config.records == "prompts":
        seen |= {tuple(writer.prompt_ids(text)) for text in unseen_prompts(writer)}
    source = prompt_source(writer, config)
    written = sum(shard["questions"] for shard in shards)
    expected = config.questions if source.size is None else min(config.questions, source.size)
    barren = 0  # shards in a row without a usable text
    with Progress(expected, written, "prompt", console is not None) as bar:
        while sum(shard["questions"] for shard in shards) < config.questions:
            texts = source.shard(manifest["drawn"])
            if texts is None:
                break
            kept = _usable(texts, writer, seen, manifest["left_out"])
            barren = 0 if kept else barren + 1
            if source.size is None and barren == len(config.parts):  # each source in turn had nothing new
                raise ValueError(_too_many(config.questions, sum(shard["questions"] for shard in shards)))
            examples = writer.examples(kept, seed=config.seed + manifest["drawn"])
            manifest["drawn"] += 1
            if examples:
                file = f"shard-{len(shards):05d}.safetensors"
                save_shard(folder / file, examples)
                answer_tokens = sum(example.answer_length for example in examples)
                shards.append({"file": file, "questions": len(kept), "answer_tokens": answer_tokens})
            write_json(folder / MANIFEST, manifest)
            if examples and console is not None and not console.quiet:
                bar.say(f"{file}: {len(kept)} prompts, {answer_tokens} answer tokens")
            bar.advance(len(kept))
    if not shards:
        named = " and ".join(part.file or part.origin for part in config.parts)
        raise ValueError(f"`source` must hold a usable record, but {named} has none: {manifest['left_out']}.")
    return manifest


def _too_many(questions: int, found: int) -> str:
    return (
        f"`questions` must be at most what the target can vary, got {questions}: after {found} different ones it only "
        "repeats itself. Ask for fewer, or name a `source`."
    )


def _usable(texts: list[str], writer: Writer, seen: set[tuple[int, ...]], left_out: dict[str, int]) -> list[str]:
    """The texts that are neither empty, too long nor repeated; counts the others and notes the prompts as seen."""
    kept = []
    for text in texts:
        prompt = tuple(writer.prompt_ids(text))
        if not text.strip():
            left_out["empty"] += 1
        elif writer.is_too_long(text):
            left_out["too_long"] += 1
        elif prompt in seen:
            left_out["repeated"] += 1
        else:
            seen.add(prompt)
            kept.append(text)
    return kept


class Data(NamedTuple):
    """held_out are greedy ones. loops: the share of the answers' tokens that was cut, since they had begun to loop."""

    training: list[Example]
    held_out: list[Example]
    loops: float


def load_data(folder: Path) -> Data:
    """All finished shards."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"`data` must be a folder with a {MANIFEST}, got {folder}.")
    examples = [example for shard in manifest["shards"] for example in load_shard(folder / shard["file"])]
    answer_tokens = sum(example.answer_length for example in examples)
    if manifest["settings"].get("records") != "texts":  # a text repeats itself only where its author did
        examples = without_loops(examples)
    kept = sum(example.answer_length for example in examples)
    held_out = [example.held_out for example in examples]
    training = [example for example, out in zip(examples, held_out, strict=True) if not out]
    greedy = [example for example, out in zip(examples, held_out, strict=True) if out and not example.sampled]
    return Data(training, greedy, 1 - kept / answer_tokens)


def load_examples(folder: Path) -> tuple[list[Example], list[Example]]:
    """(training, held-out) examples of `load_data`."""
    return load_data(folder)[:2]


def read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    return json.loads(path.read_text()) if path.exists() else None


def _checked_manifest(folder: Path, target_name: str, config: DataConfig) -> dict[str, Any]:
    """The manifest to continue, or a new one; ValueError where the folder was made with other settings."""
    settings = dataclasses.asdict(config)
    settings.pop("questions")  # a folder may grow
    settings.pop("prompts")
    if config.unseen is not None:
        settings["unseen"] = Path(config.unseen).name
    settings["source"] = _names(config)
    settings["target"] = target_name
    manifest = read_manifest(folder)
    if manifest is None:
        left_out = {"empty": 0, "too_long": 0, "repeated": 0}
        return {"settings": settings, "drawn": 0, "left_out": left_out, "shards": []}
    for name, value in settings.items():
        if manifest["settings"].get(name) != value:
            made_with = manifest["settings"].get(name)
            raise ValueError(f"`{name}` must be {made_with!r} as in {folder / MANIFEST}, got {value!r}.")
    return manifest


def _names(config: DataConfig) -> str:
    """Where the prompts come from, as manifests and cards say it."""
    names = [SOURCES[part.origin] if part.file is None else Path(part.file).name for part in config.parts]
    return ", ".join(names)


def _prompts(path: Path) -> Iterator[tuple[int, ...]]:
    return (tuple(example.tokens[: example.prompt_length].tolist()) for example in load_shard(path))
