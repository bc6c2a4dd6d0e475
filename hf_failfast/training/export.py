"""The output folder: a checkpoint `load_drafter` reads, its record of how it was made, and its model card."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..drafters.made_for import fingerprint
from .data import HELD_OUT_ONE_IN, write_json
from .model import CanvasDrafter

WEIGHTS = "model.safetensors"
CONFIDENCE_THRESHOLD = 0.45
CHUNKS_PER_DRAFT = 4


@dataclass(frozen=True)
class Provenance:
    """What a reader needs to make the drafter again: written to training.json and the model card."""

    target: str
    licence: str
    command: str
    data: dict[str, Any]


def drafter_json(drafter: CanvasDrafter, target: str, canvas_length: int) -> dict[str, Any]:
    """config.json: the body's own config, with the description of the drafter under "failfast"."""
    content = drafter.body.config.to_diff_dict()
    for local in ("_name_or_path", "_model_name_or_path"):  # where the target lay when it was loaded
        content.pop(local, None)
    content["dtype"] = "bfloat16"
    content["failfast"] = {
        "attention": "causal_canvas",
        "shift": 1,
        "mask_token_id": drafter.body.config.vocab_size,  # one beyond the target's vocabulary: no text contains it
        "noise": "mask",
        "shared_embeddings": True,
        "canvas_length": canvas_length,
        "confidence_threshold": CONFIDENCE_THRESHOLD,
        "chunk_length": canvas_length,
        "max_draft_length": CHUNKS_PER_DRAFT * canvas_length,
        "target": target,
        "target_fingerprint": fingerprint(drafter.body.get_input_embeddings().weight),
        "source_layers": list(drafter.source_layers),
    }
    return content


def model_card(provenance: Provenance, record: dict[str, Any]) -> str:
    """README.md with the front matter the Hub reads; every number comes from `record`."""
    held_out, data = record["held_out"], provenance.data
    questions = sum(shard["questions"] for shard in data["shards"])
    answer_tokens = sum(shard["answer_tokens"] for shard in data["shards"])
    accuracy = held_out["accuracy_by_position"]
    rows = "\n".join(f"| {k} | {value:.3f} |" for k, value in enumerate(accuracy, start=1))
    return f"""---
license: {provenance.licence}
base_model: {provenance.target}
library_name: transformers
tags: [speculative-decoding, diffusion-lm, hf_failfast]
---
# Diffusion drafter for {provenance.target}

Drafts for `{provenance.target}` in speculative decoding with `hf_failfast`; not a language model to use by itself.
Its layers are copies of the target's layers {record["source_layers"]}, trained further; embedding and head are the
target's and are not stored.

Training data: {questions} questions written by the target and its greedy answers ({answer_tokens} tokens;
one prompt in {HELD_OUT_ONE_IN} is held out). Trained for {record["step"]} steps ({record["minutes"]} minutes) with

    {provenance.command}

Held-out mean acceptance length (greedy, teacher-forced, one pass of {len(accuracy)} draft positions, bonus token
included): **{held_out["mean_acceptance_length"]:.2f}** over {held_out["drafts"]} drafts.

| draft position | accuracy |
|---|---|
{rows}

The weights derive from the target's and keep its licence.
"""


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "transformers", "safetensors")}
    return {"python": platform.python_version(), **packages}


def export(
    folder: Path,
    drafter: CanvasDrafter,
    canvas_length: int,
    provenance: Provenance,
    record: dict[str, Any],
) -> None:
    """Refreshes `folder`; the weights replace the older ones at once, so it can be loaded at any time."""
    partial = folder / (WEIGHTS + ".partial")
    save_file(drafter.stored_state(), partial, metadata={"format": "pt"})
    partial.rename(folder / WEIGHTS)
    write_json(folder / "config.json", drafter_json(drafter, provenance.target, canvas_length))
    write_json(folder / "training.json", record)
    (folder / "README.md").write_text(model_card(provenance, record))
