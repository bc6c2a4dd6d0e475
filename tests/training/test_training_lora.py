"""`hf-failfast train --lora` on tiny random models: what is trained, exported in PEFT's format, and drafted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LOOPS, plain
from conftest import tiny_model as tiny_of
from lora_support import PREFIX, layers_of, logits_with
from safetensors.torch import load_file
from sessions import draft_of, session_of
from training_support import (
    PROVENANCE,
    VOCABULARY,
    random_examples,
    talkative_target,
    tiny_target,
    tiny_tokenizer,
)
from typer.testing import CliRunner

from hf_failfast import load_drafter
from hf_failfast.cli.app import app
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint
from hf_failfast.drafters.lora.drafter import LoraDrafter
from hf_failfast.policies.confidence import FixedLength
from hf_failfast.training.canvases import Canvases
from hf_failfast.training.config import TrainingConfig
from hf_failfast.training.lora import LoraCanvas, mask_token
from hf_failfast.training.trainer import Trainer

CONFIG = TrainingConfig(steps=6, lora=True, lora_rank=4, canvas_length=4, batch_size=2, anchors=3, evaluation_steps=3)
FASTER = {"learning_rate": 2e-2, "warmup_steps": 5}


def new_trainer(folder: Path, config: TrainingConfig = CONFIG, model: Any = None) -> Trainer:
    data = random_examples(9), random_examples(3)
    return Trainer(model or tiny_target(), data, config, folder, PROVENANCE, random_examples(4))


def test_resumed_training_is_bit_exact(tmp_path: Path) -> None:
    straight = new_trainer(tmp_path / "straight")
    record = straight.train()
    new_trainer(tmp_path / "resumed", replace(CONFIG, steps=3)).train()
    second = new_trainer(tmp_path / "resumed")
    assert second.step == 3
    # The learning rate of the first three steps was that of a run of three.
    assert second.train()["step"] == record["step"] == 6
    again = new_trainer(tmp_path / "again")
    assert again.train()["held_out"] == record["held_out"]
    for one, other in zip(straight.parameters, again.parameters, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"`lora_rank` must be 4 as in .*, got 5"):
        new_trainer(tmp_path / "resumed", replace(CONFIG, lora_rank=5))


def test_only_the_updates_learn(tmp_path: Path) -> None:
    """The target's weights are those of before, and it gets no gradients; the loss of one batch falls."""
    model = tiny_target()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = new_trainer(tmp_path, replace(CONFIG, steps=40, batch_size=9, evaluation_steps=40, **FASTER), model)
    losses = [trainer.train_step()["loss"] for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and not weight.requires_grad for weight in model.parameters())
    assert {name.rpartition(".")[2] for name, _ in trainer.drafter.named_parameters()} == {"down", "up"}


def test_a_new_lora_is_the_target(tmp_path: Path) -> None:
    """Before training a canvas row is the target's own of the mask token, and clean rows always are."""
    model = tiny_target()
    lora = LoraCanvas(model, 4)
    canvases = Canvases(torch.randint(5, VOCABULARY, (1, 12)), torch.tensor([[6]]), 4, "causal")
    with torch.no_grad():
        clean, canvas = lora(canvases)
        ids = torch.cat([canvases.tokens[:, :7], torch.full((1, 3), mask_token(model))], dim=1)
        states = model(ids, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(canvas[0, 0], states[0, 7:])
        for layer in lora.weights.updates.values():
            torch.nn.init.normal_(layer.up)
        changed, other = lora(canvases)
    assert torch.equal(changed, clean)
    assert (other - canvas).abs().max() > 0.1


def test_the_exported_folder_is_pefts(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    record = trainer.train()
    names = sorted(layers_of(tiny_target()))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": 4,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": config["target_modules"],
    }
    assert sorted(config["target_modules"]) == names
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert set(weights) == {f"{PREFIX}{name}.lora_{part}.weight" for name in names for part in "AB"}
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    section = json.loads((tmp_path / "failfast.json").read_text())
    assert section.pop("target_fingerprint").startswith(f"{VOCABULARY}:")
    assert section == {
        "attention": "causal",
        "shift": 1,
        "mask_token_id": mask_token(tiny_target()),
        "noise": "mask",
        "confidence_threshold": 0.45,
        "chunk_length": 4,
        "max_draft_length": 4,
        "shared_embeddings": False,
        "conditioned": False,
        "target": "tiny",
    }
    card = (tmp_path / "README.md").read_text()
    assert "base_model_relation: adapter" in card and "library_name: peft" in card and "LoRA of rank 4" in card
    assert record["decoding"]["acceptance_by_position"][0] > 0
    tiny_target().save_pretrained(tmp_path / "target")
    found = inspect_checkpoint(tmp_path, tmp_path / "target")
    assert (found.family, found.made_for, found.misfit, found.is_made_for_target) == ("LoRA", "tiny", None, True)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mistral", "qwen3"])
def test_the_engine_drafts_as_training_did(family: str, tmp_path: Path) -> None:
    """Ids and confidences in the engine are those of training's own forward, for targets of several architectures."""
    model = tiny_of(family, pad_token_id=3, vocab_size=VOCABULARY)
    trainer = new_trainer(tmp_path, replace(CONFIG, regression_weight=0.0, **FASTER), model)
    trainer.train()
    exact = LoraCanvas(model, 4)
    exact.start_from(tmp_path)
    tokens, anchors = torch.randint(5, VOCABULARY, (1, 30)), torch.tensor([[29, 17]])
    with torch.no_grad():
        clean, canvas = exact(Canvases(tokens, anchors, 4, "causal"))
        first = clean[:, anchors[0]][:, :, None]
        logits = exact.logits(torch.cat([first, canvas], dim=2))[0]
    drafter = load_drafter(tmp_path, dtype=torch.float32)
    for number, anchor in enumerate(anchors[0].tolist()):
        session = session_of(drafter, model, 64)
        draft = draft_of(session, tokens[:, : anchor + 1], FixedLength(4), 20)
        assert draft.token_ids.tolist() == [logits[number].argmax(-1).tolist()]
        if family != "gemma2":  # whose head caps its logits
            expected = logits[number].softmax(-1).amax(-1)
            torch.testing.assert_close(draft.confidence[0], expected, atol=1e-5, rtol=1e-4)
    prompt = tokens[:, :9]
    expected_text = plain(model, prompt, max_new_tokens=24)
    for loop in LOOPS.values():
        assert torch.equal(loop(model, prompt, drafter, max_new_tokens=24), expected_text)


def test_pefts_formula_gives_the_same(tmp_path: Path) -> None:
    """`lora_alpha` over `r` is the scale that the stored updates were trained with."""
    model = tiny_target()
    new_trainer(tmp_path, replace(CONFIG, **FASTER), model).train()
    ids = torch.randint(5, VOCABULARY, (1, 12))
    ids[:, 9:] = mask_token(model)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert max(float(value.abs().max()) for name, value in weights.items() if "lora_B" in name) > 0
    expected = logits_with(model, tmp_path, ids, torch.arange(12) >= 9, scale=1.0)[0, 8:]
    session = session_of(load_drafter(tmp_path, dtype=torch.float32), model, 64)
    draft = draft_of(session, ids[:, :9], FixedLength(4), 20)
    torch.testing.assert_close(draft.confidence[0], expected.softmax(-1).amax(-1), atol=1e-4, rtol=1e-3)


def test_a_run_can_start_from_another_lora(tmp_path: Path) -> None:
    new_trainer(tmp_path / "first", replace(CONFIG, **FASTER)).train()
    second = new_trainer(tmp_path / "second", replace(CONFIG, initial=str(tmp_path / "first")))
    weights = load_file(tmp_path / "first" / "adapter_model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in second.drafter.stored_state().items())
    with pytest.raises(ValueError, match="`initial` must be a LoRA of the same layers and rank"):
        new_trainer(tmp_path / "third", replace(CONFIG, lora_rank=2, initial=str(tmp_path / "first")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_rank": 0}, r"`lora_rank` must be in \[1, 1024\], got 0"),
        ({"lora_rank": 1025}, r"`lora_rank` must be in \[1, 1024\], got 1025"),
        ({"conditioned": True}, "`conditioned` does not fit `lora`, .* got True"),
        ({"attention": "block_causal"}, "`attention` does not fit `lora`"),
        ({"layers": (0, 1)}, "`layers` does not fit `lora`"),
        ({"intermediate_size": 8}, "`intermediate_size` does not fit `lora`"),
        ({"draft_vocabulary": 50}, "`draft_vocabulary` does not fit `lora`"),
        ({"coverage": 0.9}, "`coverage` does not fit `lora`"),
        ({"drafter_window": 64}, "`drafter_window` does not fit `lora`"),
    ],
)
def test_bad_settings_name_field_bound_and_value(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **fields)


def test_targets_that_cannot_have_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="linear layers of at least 64 inputs and outputs"):
        new_trainer(tmp_path / "a", replace(CONFIG, lora_rank=64))
    with pytest.raises(ValueError, match="names a mask, padding or end-of-text token"):
        new_trainer(tmp_path / "b", CONFIG, tiny_of("llama"))


def test_the_command(tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    talkative_target().save_pretrained(target)
    tiny_tokenizer().save_pretrained(target)
    counts = ["--questions", "40", "--answer-tokens", "8", "--synthesis-batch-size", "64"]
    sizes = ["--steps", "2", "--canvas-length", "4", "--batch-size", "2", "--anchors", "2", "--seed", "1"]
    own = ["--lora", "--lora-rank", "2"]
    command = ["train", "--target", str(target), "--output", str(tmp_path / "lora"), *counts, *sizes, *own]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    drafter = load_drafter(tmp_path / "lora")
    assert isinstance(drafter, LoraDrafter)
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == 2
    prompt = ["--prompt", "abc", "--max-new-tokens", "8"]
    run = ["generate", "--target", str(target), "--drafter", str(tmp_path / "lora"), *prompt]
    assert CliRunner().invoke(app, run, catch_exceptions=False).exit_code == 0
    inspected = CliRunner().invoke(app, ["inspect", str(tmp_path / "lora"), "--target", str(target)])
    assert inspected.exit_code == 0, inspected.output
