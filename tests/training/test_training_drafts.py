"""The exported drafter drafts in the engine what it drafted in training, for every kind of drafter."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import LOOPS, plain
from safetensors.torch import load_file, save_file
from sessions import draft_of, session_of
from training_support import PROVENANCE, VOCABULARY, random_examples, tiny_target
from transformers import DynamicCache

from hf_failfast import Conversation, load_drafter
from hf_failfast.compatibility import CACHE
from hf_failfast.drafters import DraftSession
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint
from hf_failfast.drafters.conditioned.canvas import ConditionedDrafter
from hf_failfast.policies import LengthPolicy
from hf_failfast.policies.confidence import FixedLength
from hf_failfast.training.canvases import Canvases
from hf_failfast.training.config import TrainingConfig
from hf_failfast.training.model import CanvasDrafter
from hf_failfast.training.trainer import Trainer

CONFIG = TrainingConfig(steps=2, layers=(0, 3), canvas_length=4, batch_size=2, anchors=3, draft_vocabulary=50)
KINDS = {
    "standalone": CONFIG,
    "conditioned": replace(CONFIG, conditioned=True),
    "without input fusion": replace(CONFIG, conditioned=True, input_fusion=False),
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


def stored_drafter(folder: Path, config: TrainingConfig, vocabulary: torch.Tensor | None) -> CanvasDrafter:
    """The exported weights in the training's own model, without the trainer's autocast."""
    fusion = config.conditioned and config.input_fusion
    drafter = CanvasDrafter(tiny_target(), config.layers, vocabulary, config.intermediate_size, fusion)
    drafter.load_stored_state(load_file(folder / "model.safetensors"))
    return drafter.eval()


def hand_over(session: DraftSession, states: Sequence[torch.Tensor], start: int, end: int) -> None:
    """The target's hidden states (layers + 1 of (1, n, hidden)) of tokens `start` to `end`."""
    session.observe([torch.cat([states[layer] for layer in session.target_layers], dim=-1)[:, start:end]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_drafts_as_training_did(kind: str, tmp_path: Path) -> None:
    config = KINDS[kind]
    vocabulary = trained(tmp_path, config).drafter.draft_vocabulary
    target = tiny_target()
    exact = stored_drafter(tmp_path, config, vocabulary)
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
            hand_over(session, states, 0, anchor)
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


CONDITIONED = ["conditioned", "without input fusion"]


@pytest.mark.parametrize("kind", CONDITIONED)
def test_a_conditioned_draft_goes_on_from_what_it_drafted(kind: str, tmp_path: Path) -> None:
    """Chunks after the first canvas read the tokens drafted so far, as extended canvases do in training."""
    config = KINDS[kind]
    vocabulary = trained(tmp_path, config).drafter.draft_vocabulary
    target, exact = tiny_target(), stored_drafter(tmp_path, config, vocabulary)
    tokens = torch.randint(5, VOCABULARY, (1, 12))
    states = target(tokens, output_hidden_states=True).hidden_states
    session = session_of(load_drafter(tmp_path, dtype=torch.float32), target, 60)
    hand_over(session, states, 0, 11)
    draft = draft_of(session, tokens, Extending(chunk_length=4, max_draft_length=14), 30)
    assert (draft.passes, draft.token_ids.shape[1]) == (4, 14)
    found = draft.token_ids[0].tolist()
    expected: list[int] = []
    while len(expected) < 14:
        known = torch.cat([tokens, torch.tensor([expected], dtype=torch.long)], dim=1)
        rows = len(expected) + 3
        revealed = (torch.arange(rows) < len(expected))[None, None]
        canvases = Canvases(known, torch.tensor([[11]]), rows + 1, revealed=revealed)
        features = torch.stack([states[layer] for layer in exact.source_layers], dim=2)
        padded = torch.nn.functional.pad(features, (0, 0, 0, 0, 0, len(expected)))
        with torch.no_grad():
            clean, canvas = exact(canvases, padded)
            logits = exact.logits(torch.cat([clean[:, 11:12], canvas[0]], dim=1)[0, len(expected) :])
        ids = logits.argmax(-1)
        expected += (ids if vocabulary is None else vocabulary[ids]).tolist()
    assert found == expected[:14]


class Extending(LengthPolicy):
    def should_extend(self, confidence: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(confidence), dtype=torch.bool)


@pytest.mark.parametrize("kind", CONDITIONED)
def test_a_conditioned_window_is_a_text_that_begins_there(kind: str, tmp_path: Path) -> None:
    trained(tmp_path, KINDS[kind])
    target = tiny_target()
    drafter, whole = (load_drafter(tmp_path, dtype=torch.float32, drafter_window=window) for window in (16, 0))
    assert load_drafter(tmp_path).window == 256
    tokens = torch.randint(5, VOCABULARY, (1, 40))
    states = target(tokens, output_hidden_states=True).hidden_states
    session, seen = session_of(drafter, target, 80), []
    known = 6
    for length in (7, 12, 16, 17, 20, 24, 25, 31, 40):
        hand_over(session, states, 0 if length == 7 else known, length - 1)
        known = length - 1
        draft = draft_of(session, tokens[:, :length], FixedLength(4), 20)
        session.accept([0])
        first = session.offset
        alone = session_of(whole, target, 80)
        hand_over(alone, states, first, length - 1)
        expected = draft_of(alone, tokens[:, first:length], FixedLength(4), 20)
        assert draft.token_ids.tolist() == expected.token_ids.tolist()
        torch.testing.assert_close(draft.confidence, expected.confidence, atol=1e-5, rtol=1e-4)
        seen.append(length - first)
    assert max(seen) <= 16 and seen[3] == 8  # of 17 tokens half a window is read anew
    assert session.cache.get_seq_length() < 16


@pytest.mark.parametrize("kind", CONDITIONED)
def test_a_conditioned_drafter_drafts_after_a_cached_prefix(kind: str, tmp_path: Path) -> None:
    """The target's own cache holds the beginning: its states never come, and the text is what comes after it."""
    trained(tmp_path, KINDS[kind])
    target, drafter = tiny_target(), load_drafter(tmp_path, dtype=torch.float32)
    prompt = torch.randint(5, VOCABULARY, (1, 20))
    past = DynamicCache(config=target.config)
    with torch.no_grad():
        target(prompt[:, :14], **{CACHE: past})
    expected = plain(target, prompt, max_new_tokens=16)
    found = LOOPS["failfast"](
        target, prompt, drafter, max_new_tokens=16, return_dict_in_generate=True, **{CACHE: past}
    )
    assert torch.equal(found.sequences, expected)
    assert found.speculation.drafted > 0


@pytest.mark.parametrize("kind", CONDITIONED)
def test_a_conditioned_conversation_goes_on(kind: str, tmp_path: Path) -> None:
    trained(tmp_path, KINDS[kind])
    target, drafter = tiny_target(), load_drafter(tmp_path, dtype=torch.float32, drafter_window=16)
    chat = Conversation(drafter)
    text = torch.randint(5, VOCABULARY, (1, 9))
    for turn in range(4):
        expected = plain(target, text, max_new_tokens=10)
        found = LOOPS["failfast"](target, text, chat, max_new_tokens=10, return_dict_in_generate=True)
        assert torch.equal(found.sequences, expected)
        assert found.speculation.drafted > 0
        end = expected.shape[1] - (3 if turn == 1 else 0)  # one turn differs from the text so far
        text = torch.cat([expected[:, :end], torch.randint(5, VOCABULARY, (1, 5))], dim=1)


def test_fused_weights_must_be_there(tmp_path: Path) -> None:
    trained(tmp_path, KINDS["conditioned"])
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["fusion.token.weight"].shape == weights["fusion.canvas.weight"].shape == (32, 64)
    del weights["fusion.canvas.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="`input_fusion` with .'fusion.token.weight'"):
        load_drafter(tmp_path)


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
