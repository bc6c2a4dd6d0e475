"""The output folder: a checkpoint `load_drafter` reads, its record of how it was made, and its model card."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..drafters.checkpoints.reading import LORA_CONFIG, LORA_SECTION
from ..drafters.checkpoints.target_fit import fingerprint
from ..drafters.spec import OWN_WINDOW, SECTION, DrafterSection
from .atomic_files import replacing, write_json
from .config import LOSS_WEIGHTS, TrainingConfig
from .data.shards import HELD_OUT_ONE_IN
from .data.unseen import ANSWER_TOKENS
from .dflash import BlockDrafter
from .dflash_layouts import speculators_json, zlab_json
from .lora import LORA_WEIGHTS, LoraCanvas, Trainable
from .model import CanvasDrafter
from .report import PLOT

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


def drafter_json(drafter: CanvasDrafter, target: str, config: TrainingConfig) -> dict[str, Any]:
    """config.json: the body's own config, with the description of the drafter under `SECTION`."""
    content = drafter.body.config.to_diff_dict()
    for local in ("_name_or_path", "_model_name_or_path"):  # where the target lay when it was loaded
        content.pop(local, None)
    content["dtype"] = "bfloat16"
    content[SECTION] = drafter_section(drafter, target, config).content()
    return content


def drafter_section(drafter: CanvasDrafter, target: str, config: TrainingConfig) -> DrafterSection:
    length = config.canvas_length
    is_block = config.attention == "block_causal"
    return DrafterSection(
        spec={
            "attention": config.attention,
            "shift": 1,
            "mask_token_id": drafter.body.config.vocab_size,  # one beyond the target's vocabulary: in no text
            "noise": "mask",
            "block_size": length if is_block else None,
        },
        options={
            "confidence_threshold": CONFIDENCE_THRESHOLD,
            "chunk_length": length,
            "max_draft_length": CHUNKS_PER_DRAFT * length,
        },
        shared_embeddings=True,
        conditioned=config.conditioned,
        input_fusion=drafter.fusion is not None,
        canvas_length=None if is_block else length,
        drafter_window=None if config.drafter_window == OWN_WINDOW else config.drafter_window,
        source_layers=drafter.source_layers,
        target=target,
        target_fingerprint=fingerprint(drafter.body.get_input_embeddings().weight),
    )


def lora_section(lora: LoraCanvas, target: str, config: TrainingConfig) -> DrafterSection:
    """What PEFT's config does not say of it."""
    length = config.canvas_length
    return DrafterSection(
        spec={"attention": config.canvas_attention, "shift": 1, "mask_token_id": lora.mask_token_id, "noise": "mask"},
        # A pass costs as much as the verification: one a draft.
        options={
            "confidence_threshold": CONFIDENCE_THRESHOLD,
            "chunk_length": length,
            "max_draft_length": length,
        },
        target=target,
        target_fingerprint=fingerprint(lora.target.get_input_embeddings().weight),
    )


def model_card(provenance: Provenance, record: dict[str, Any]) -> str:
    """README.md with the front matter the Hub reads; every number comes from `record`."""
    held_out, config = record["held_out"], record["config"]
    accuracy = held_out["accuracy_by_position"]
    figures = zip(accuracy, held_out["acceptance_by_position"], strict=True)
    rows = "\n".join(f"| {k} | {right:.3f} | {accepted:.3f} |" for k, (right, accepted) in enumerate(figures, start=1))
    losses = ", ".join(f"{name.removesuffix('_weight')} {config[name]}" for name in LOSS_WEIGHTS if config[name])
    decoding = _decoding_lines(record["decoding"]) if "decoding" in record else ""
    peft = "\nbase_model_relation: adapter" if config.get("lora") else ""
    library = "peft" if config.get("lora") else "transformers"
    return f"""---
license: {provenance.licence}
base_model: {provenance.target}{peft}
library_name: {library}
tags: [speculative-decoding, diffusion-lm, hf_failfast]
---
# Diffusion drafter for {provenance.target}

Drafts for `{provenance.target}` in speculative decoding with `hf_failfast`; not a language model to use by itself.
The text stays the target's own: under greedy decoding token by token in float32, in bfloat16 up to near ties.
{_what_it_is(record)}

Training data: {_data_line(provenance.data)}; one prompt in {HELD_OUT_ONE_IN} is held out.
Trained for {record["step"]} steps ({record["minutes"]} minutes; loss weights: {losses}) with

    {provenance.command}
{decoding}
Held-out mean acceptance length (greedy, teacher-forced, one pass of {len(accuracy)} draft positions, bonus token
included): **{held_out["mean_acceptance_length"]:.2f}** over {held_out["drafts"]} drafts.

| draft position | right | accepted |
|---|---|---|
{rows}

![Losses, acceptance and confidence]({PLOT})

The weights derive from the target's and keep its licence.
"""


def _what_it_is(record: dict[str, Any]) -> str:
    config = record["config"]
    if config.get("lora"):
        return (
            f"It is a LoRA of rank {config['lora_rank']} in PEFT's format, active on the positions to be filled only: "
            "the target drafts for itself,\nwith its own K/V. Merged or switched on for the text, it would change the "
            "target."
        )
    is_dflash = config.get("form") == "dflash"
    reads_states = config["conditioned"] or is_dflash
    conditioned = ",\nand they read the target's hidden states of the text so far" if reads_states else ""
    attention = f"DFlash's, {config['layout']}'s layout" if is_dflash else config["attention"]
    return (
        f"Its layers are copies of the target's layers {record['source_layers']}, trained further{conditioned}.\n"
        f"Embedding and head are the target's and are not stored. Attention: {attention}."
    )


def _decoding_lines(decoding: dict[str, Any]) -> str:
    mean, low, high = (decoding[name] for name in ("mean_acceptance_length", "low", "high"))
    shares = ", ".join(f"{share:.2f}" for share in decoding["acceptance_by_position"])
    return f"""
Decoding of prompts that training never saw (greedy, one whole canvas a round, the first {ANSWER_TOKENS} tokens of
{decoding["answers"]} answers): **{mean:.2f}** tokens a round, bonus token included (95 % interval: {low:.2f} to
{high:.2f}).
Share of the rounds that accepted draft position 1, 2, ...: {shares}.
"""


def _data_line(data: dict[str, Any]) -> str:
    questions = sum(shard["questions"] for shard in data["shards"])
    answer_tokens = sum(shard["answer_tokens"] for shard in data["shards"])
    loops = f"; {data['loops']:.1%} of them are cut, since they repeat themselves" if "loops" in data else ""
    return f"{questions} prompts ({data['settings']['source']}), {answer_tokens} tokens of answers{loops}"


def _configs(drafter: Trainable, target: str, config: TrainingConfig) -> dict[str, Any]:
    """What `load_drafter` reads beside the weights, by file name."""
    if isinstance(drafter, LoraCanvas):
        section = lora_section(drafter, target, config)
        return {LORA_CONFIG: drafter.peft_config(target), LORA_SECTION: section.content()}
    if isinstance(drafter, BlockDrafter):
        length = config.canvas_length
        is_zlab = config.layout == "z-lab"
        return {"config.json": zlab_json(drafter, length) if is_zlab else speculators_json(drafter, length, target)}
    return {"config.json": drafter_json(drafter, target, config)}


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "transformers", "safetensors")}
    return {"python": platform.python_version(), **packages}


def export(
    folder: Path, drafter: Trainable, config: TrainingConfig, provenance: Provenance, record: dict[str, Any]
) -> None:
    """Refreshes `folder`; the weights replace the older ones at once, so it can be loaded at any time."""
    with replacing(folder / (LORA_WEIGHTS if isinstance(drafter, LoraCanvas) else WEIGHTS)) as partial:
        save_file(drafter.stored_state(), partial, metadata={"format": "pt"})
    for name, content in _configs(drafter, provenance.target, config).items():
        write_json(folder / name, content)
    write_json(folder / "training.json", record)
    with replacing(folder / "README.md") as partial:
        partial.write_text(model_card(provenance, record))
