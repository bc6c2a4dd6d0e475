"""The exported drafter drafts in the engine what it drafted in training, for every kind of drafter."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import LOOPS, plain
from safetensors.torch import load_file
from sessions import draft_of, session_of
from training_support import PROVENANCE, VOCABULARY, random_examples, tiny_target

from hf_failfast import load_drafter
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint
from hf_failfast.drafters.conditioned.canvas import ConditionedDrafter
from hf_failfast.policies.confidence import FixedLength
from hf_failfast.training.canvases import Canvases
from hf_failfast.training.config import TrainingConfig
from hf_failfast.training.model import CanvasDrafter
from hf_failfast.training.trainer import Trainer

CONFIG = TrainingConfig(steps=2, layers=(0, 3), canvas_length=4, batch_size=2, anchors=3, draft_vocabulary=50)
KINDS = {
    "standalone": CONFIG,
    "conditioned": replace(CONFIG, conditioned=True),
    "full vocabulary": replace(CONFIG, conditioned=True, draft_vocabulary=0),
    "block_causal": replace(CONFIG, attention="block_causal"),
    "narrow": replace(CONFIG, intermediate_size=16),
}


def new_trainer(folder: Path, config: TrainingConfig) -> Trainer:
    return Trainer(tiny_target(), (random_examples(6), random_examples(2)), config, folder, PROVENANCE)


def trained(folder: Path, config: TrainingConfig) -> Trainer:
    trainer = new_trainer(folder, config)
    torch.nn.init.normal_(trainer.drafter.mask_embedding)
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_drafts_as_training_did(kind: str, tmp_path: Path) -> None:
    config = KINDS[kind]
    vocabulary = trained(tmp_path, config).drafter.draft_vocabulary
    target = tiny_target()
    exact = CanvasDrafter(
        target, config.layers, vocabulary, config.intermediate_size
    )  # without the trainer's autocast
    exact.load_stored_state(load_file(tmp_path / "model.safetensors"))
    tokens = torch.randint(5, VOCABULARY, (1, 16))
    states = target(tokens, output_hidden_states=True).hidden_states
    features = torch.stack([states[0], states[3]], dim=2) if config.conditioned else None
    anchors = torch.tensor([[15, 7]])
    is_block = config.attention == "block_causal"
    revealed = torch.zeros(1, 2, 4, dtype=torch.bool) if is_block else None
    canvases = Canvases(tokens, anchors, 4, config.attention, revealed)
    with torch.no_grad():
        clean, canvas = exact(canvases, features)
        first = clean[:, anchors[0]][:, :, None]
        logits = exact.logits(torch.cat([first, canvas[:, :, :3]], dim=2))
    expected = logits.argmax(-1)
    if vocabulary is not None:
        expected = vocabulary[expected]

    drafter = load_drafter(tmp_path, dtype=torch.float32)
    for number, anchor in enumerate(anchors[0].tolist()):
        session = session_of(drafter, target, 40)
        if session.target_layers:
            session.observe([torch.cat([states[layer] for layer in session.target_layers], dim=-1)[:, :anchor]])
        draft = draft_of(session, tokens[:, : anchor + 1], FixedLength(4), 20)
        assert draft.token_ids.tolist() == expected[:, number].tolist()
        torch.testing.assert_close(draft.confidence, logits[:, number].softmax(-1).amax(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_is_lossless_with_a_trained_drafter(kind: str, tmp_path: Path) -> None:
    trained(tmp_path, KINDS[kind])
    target, drafter = tiny_target(), load_drafter(tmp_path, dtype=torch.float32)
    prompt = torch.randint(5, VOCABULARY, (1, 9))
    expected = plain(target, prompt, max_new_tokens=24)
    for loop in LOOPS.values():
        assert torch.equal(loop(target, prompt, drafter, max_new_tokens=24), expected)


def test_conditioned_checkpoints_say_what_they_need(tmp_path: Path) -> None:
    trained(tmp_path, KINDS["conditioned"])
    drafter = load_drafter(tmp_path)
    assert isinstance(drafter, ConditionedDrafter) and drafter.target_layers == (0, 3)
    found = inspect_checkpoint(tmp_path)
    assert found.conditioned
    assert dict(found.rows())["conditioned"] == "on the target's hidden states"
    assert found.chunk_per_pass == 4
    tiny_target(layers=2).config.save_pretrained(tmp_path / "shallow")
    assert "reads the target's layer 3" in str(inspect_checkpoint(tmp_path, tmp_path / "shallow").misfit)
    with pytest.raises(ValueError, match="A conditioned drafter drafts in one pass"):
        load_drafter(tmp_path, denoising_steps=2)
    with pytest.raises(ValueError, match=r"reads the hidden states \[0, 3\], but the target has 2 layers"):
        session_of(drafter, tiny_target(layers=2), 20)


def test_training_starts_from_a_drafter(tmp_path: Path) -> None:
    trained(tmp_path / "first", CONFIG)
    second = replace(CONFIG, initial=str(tmp_path / "first"))
    follower = new_trainer(tmp_path / "second", second)
    for name, stored in load_file(tmp_path / "first" / "model.safetensors").items():
        assert torch.equal(follower.drafter.stored_state()[name], stored)
    with pytest.raises(ValueError, match="`initial` must be a drafter of the same layers"):
        new_trainer(tmp_path / "third", replace(second, layers=(0, 1, 3)))


def test_a_conditioned_drafter_drafts_for_a_batch(tmp_path: Path) -> None:
    trained(tmp_path, KINDS["conditioned"])
    target, drafter = tiny_target(), load_drafter(tmp_path, dtype=torch.float32)
    prompts = torch.randint(5, VOCABULARY, (2, 9))
    expected = plain(target, prompts, max_new_tokens=16)
    found = LOOPS["failfast"](target, prompts, drafter, max_new_tokens=16)
    assert torch.equal(found, expected)
