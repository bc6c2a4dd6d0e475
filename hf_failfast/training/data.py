"""Questions the target writes itself and its greedy answers, kept on disk in shards that a killed run resumes.

A shard is one safetensors file:
    tokens          int32    [sum of prompt and answer lengths]  the sequences, one after the other
    prompt_lengths  int32    [n]
    answer_lengths  int32    [n]  the end-of-sequence token included
    hidden          bfloat16 [sum of answer lengths, hidden size]  the normalised final state that predicts each token
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import DataConfig
from .openings import random_opening

MANIFEST = "manifest.json"
HELD_OUT_ONE_IN = 32
_MARK = "\u0001question\u0001"  # stands for the user's text while the chat template is taken apart


@dataclass(frozen=True)
class Example:
    """One sequence: tokens [n] long, its first `prompt_length` the prompt; hidden [n - prompt_length, hidden size]."""

    tokens: torch.Tensor
    prompt_length: int
    hidden: torch.Tensor

    @property
    def held_out(self) -> bool:
        """Depends on the prompt alone, so no prompt is on both sides whatever the order of the shards."""
        digest = hashlib.sha256(self.tokens[: self.prompt_length].numpy().tobytes()).digest()
        return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


class Synthesiser:
    """Draws questions from the target and answers them greedily."""

    def __init__(self, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        self.target, self.tokenizer, self.config = target, tokenizer, config
        eos = target.generation_config.eos_token_id
        self.eos = {eos} if isinstance(eos, int) else set(eos or [])

    def user_prefix(self) -> str:
        """Everything the chat template writes before the user's text; the BOS token where there is no template."""
        if self.tokenizer.chat_template is None:
            return self.tokenizer.bos_token or ""
        return self._chat(_MARK).partition(_MARK)[0]

    def prompt(self, question: str) -> str:
        return self.user_prefix() + question if self.tokenizer.chat_template is None else self._chat(question)

    def _chat(self, question: str) -> str:
        turns = [{"role": "user", "content": question}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def questions(self, shard: int) -> list[str]:
        """The finished questions of one shard, in the order drawn; repeats within the shard are dropped."""
        config = self.config
        rng = random.Random(f"{config.seed}/{shard}")
        openings = [random_opening(rng) for _ in range(config.shard_questions)]
        prefix = self.user_prefix()
        found: dict[str, None] = {}
        with torch.random.fork_rng():
            torch.manual_seed(rng.getrandbits(48))
            for start in range(0, len(openings), config.batch_size):
                batch = openings[start : start + config.batch_size]
                sampling = {"do_sample": True, "temperature": config.temperature, "top_k": config.top_k}
                new, _ = self._generate([prefix + opening for opening in batch], config.question_tokens, **sampling)
                for opening, row in zip(batch, new.tolist(), strict=True):
                    length = self._answer_length(row)
                    # Without a template nothing ends a question: its opening and continuation are the prompt.
                    if self.tokenizer.chat_template is None or row[length - 1] in self.eos:
                        found[opening + self.tokenizer.decode(row[:length], skip_special_tokens=True)] = None
        return list(found)

    def answers(self, questions: list[str]) -> list[Example]:
        """Greedy answers in batches of similar prompt length, with the states that chose every token."""
        prompts = [self.tokenizer(self.prompt(text), add_special_tokens=False)["input_ids"] for text in questions]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        examples: dict[int, Example] = {}
        for start in range(0, len(order), self.config.batch_size):
            batch = order[start : start + self.config.batch_size]
            texts = [self.prompt(questions[i]) for i in batch]
            new, hidden = self._generate(texts, self.config.answer_tokens, do_sample=False)
            for row, i in enumerate(batch):
                length = self._answer_length(new[row].tolist())
                tokens = torch.cat([torch.tensor(prompts[i]), new[row, :length].cpu()])
                examples[i] = Example(tokens, len(prompts[i]), hidden[row, :length].cpu())
        return [examples[i] for i in range(len(prompts))]

    def _answer_length(self, row: list[int]) -> int:
        return next((i + 1 for i, token in enumerate(row) if token in self.eos), len(row))

    @torch.inference_mode()
    def _generate(self, texts: list[str], tokens: int, **sampling: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """New tokens [batch, at most `tokens`] and the normalised final state that predicted each of them."""
        states: list[torch.Tensor] = []
        decoder = self.target.base_model
        # A hook costs nothing; a second forward over the answers would cost half as much as writing them.
        handle = decoder.register_forward_hook(lambda *call: states.append(call[2].last_hidden_state[:, -1].clone()))
        try:
            inputs = self.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
            inputs = {k: inputs[k].to(self.target.device) for k in ("input_ids", "attention_mask")}
            # The static cache never copies old keys: twice the dynamic one's speed at this batch size on a CPU.
            output = self.target.generate(
                **inputs,
                **sampling,
                max_new_tokens=tokens,
                cache_implementation="static",
                pad_token_id=self.tokenizer.pad_token_id,
            )
        finally:
            handle.remove()
        new = output[:, inputs["input_ids"].shape[1] :]
        return new, torch.stack(states, dim=1)[:, : new.shape[1]].to(torch.bfloat16)


def save_shard(path: Path, examples: list[Example]) -> None:
    """Writes one shard; a file under its final name is always whole."""
    prompts = [example.prompt_length for example in examples]
    answers = [len(example.tokens) - example.prompt_length for example in examples]
    tensors = {
        "tokens": torch.cat([example.tokens for example in examples]).to(torch.int32),
        "prompt_lengths": torch.tensor(prompts, dtype=torch.int32),
        "answer_lengths": torch.tensor(answers, dtype=torch.int32),
        "hidden": torch.cat([example.hidden for example in examples]),
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.rename(path)


def load_shard(path: Path) -> Iterator[Example]:
    shard = load_file(path)
    prompts, answers = shard["prompt_lengths"].tolist(), shard["answer_lengths"].tolist()
    lengths = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    rows = zip(shard["tokens"].long().split(lengths), prompts, shard["hidden"].split(answers), strict=True)
    return (Example(*row) for row in rows)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Atomic: a reader sees the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.rename(path)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    return json.loads(path.read_text()) if path.exists() else None


def _checked_manifest(folder: Path, target_name: str, config: DataConfig) -> dict[str, Any]:
    """The manifest to continue, or a new one; ValueError where the folder was made with other settings."""
    settings = dataclasses.asdict(config)
    settings.pop("questions")  # a folder may grow
    settings["target"] = target_name
    manifest = read_manifest(folder)
    if manifest is None:
        return {"settings": settings, "shards": []}
    for name, value in settings.items():
        if manifest["settings"].get(name) != value:
            made_with = manifest["settings"].get(name)
            raise ValueError(f"`{name}` must be {made_with!r} as in {folder / MANIFEST}, got {value!r}.")
    return manifest


def synthesise(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    folder: Path,
    name: str,
    console: Console | None = None,
) -> dict[str, Any]:
    """Adds shards to `folder` until it holds `config.questions` questions of the target called `name`.

    Returns the manifest. A shard depends on the settings, its number and the prompts before it: a resumed run writes
    the same tokens (and the same states up to rounding).
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _checked_manifest(folder, name, config)
    shards = manifest["shards"]
    seen = {tuple(prompt) for shard in shards for prompt in _prompts(folder / shard["file"])}
    source = Synthesiser(target, tokenizer, config)
    while sum(shard["questions"] for shard in shards) < config.questions:
        questions = source.questions(len(shards))
        ids = [tuple(tokenizer(source.prompt(text), add_special_tokens=False)["input_ids"]) for text in questions]
        questions = [text for text, prompt in zip(questions, ids, strict=True) if prompt not in seen]
        if not questions:
            raise ValueError(f"`questions` must be at most what the target can vary, got {config.questions}.")
        seen.update(ids)
        examples = source.answers(questions)
        file = f"shard-{len(shards):05d}.safetensors"
        save_shard(folder / file, examples)
        answer_tokens = sum(len(example.hidden) for example in examples)
        shards.append({"file": file, "questions": len(examples), "answer_tokens": answer_tokens})
        write_json(folder / MANIFEST, manifest)
        if console is not None:
            console.print(f"{file}: {len(examples)} questions, {answer_tokens} answer tokens")
    return manifest


def _prompts(path: Path) -> Iterator[list[int]]:
    return (example.tokens[: example.prompt_length].tolist() for example in load_shard(path))


def load_examples(folder: Path) -> tuple[list[Example], list[Example]]:
    """All finished shards as (training, held-out) examples."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"`data` must be a folder with a {MANIFEST}, got {folder}.")
    examples = [example for shard in manifest["shards"] for example in load_shard(folder / shard["file"])]
    held_out = [example.held_out for example in examples]
    training = [example for example, out in zip(examples, held_out, strict=True) if not out]
    return training, [example for example, out in zip(examples, held_out, strict=True) if out]
