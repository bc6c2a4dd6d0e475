"""Conditioned drafters draft from graphs, which read the target's newest hidden states."""

from pathlib import Path
from typing import Any

import pytest
import torch
from graph_support import Recorder
from sessions import draft_of
from test_graph_families import KINDS
from transformers import PreTrainedModel

from hf_failfast.drafters import DiffusionDrafter, DraftRequest
from hf_failfast.engine.cuda.graph_runner import CudaGraphRunner
from hf_failfast.engine.cuda.static_slots import CapturedForward
from hf_failfast.engine.runner_pool import RunnerPool
from hf_failfast.engine.window import Window
from hf_failfast.policies.confidence import FixedLength

KIND = ["DFlash", "trained, conditioned", "trained, conditioned, whole vocabulary"]
KIND += [kind for kind in ("DFlash assistant of transformers",) if kind in KINDS]


def compare(kind: str, path: Path, accepted: list[int]) -> int:
    """Asserts that drafts and confidences of every round are those of eager drafting; returns the replays."""
    pair = KINDS[kind](path)
    with torch.no_grad():
        return drafts_are_the_eager_ones(*pair, accepted)


def drafts_are_the_eager_ones(model: PreTrainedModel, used: DiffusionDrafter, accepted: list[int]) -> int:
    sessions: list[Any] = []
    for name in ("eager", "cuda_graphs"):
        used.runners = RunnerPool(name, Recorder())
        sessions.append(used.start(DraftRequest(model, 200)))
    assert isinstance(sessions[1].runner, CudaGraphRunner)
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    text = torch.randint(vocab_size, (1, 190), generator=torch.Generator().manual_seed(2))
    states = model(text, output_hidden_states=True).hidden_states
    length, seen, policy = 20, 0, FixedLength(8)
    for count in accepted:
        length += 1
        new = torch.cat([states[layer][:, seen : length - 1] for layer in sessions[0].target_layers], dim=-1)
        for session in sessions:
            session.observe([new.clone()])
        expected, actual = (draft_of(session, text[:, :length], policy, 64) for session in sessions)
        assert len(expected) > 0
        assert torch.equal(actual.token_ids, expected.token_ids)
        torch.testing.assert_close(actual.confidence, expected.confidence, atol=1e-5, rtol=1e-4)
        for session in sessions:
            session.accept([min(count, len(expected))])
        seen = length - 1
        length += count
    replays: int = sessions[1].runner.replays
    return replays


@pytest.mark.parametrize("kind", KIND)
def test_drafts_from_the_newest_states(kind: str, tmp_path: Path) -> None:
    """Every round after the first is a replay, whatever was accepted, and drafts what eager drafting does."""
    accepted = [0, 3, 2, 0, 0, 1, 3, 20, 17, 40, 0, 1]  # more than a draft has: rounds without one
    assert compare(kind, tmp_path, accepted) == len(accepted) - 1


@pytest.mark.parametrize("kind", KIND)
@pytest.mark.parametrize("fault", ["old states", "old count", "states of padding"])
def test_a_replay_of_stale_states_is_found(
    kind: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above rejects graphs that read what an earlier round has left."""
    fill = CapturedForward.fill

    def stale(self: CapturedForward, window: Window) -> None:
        assert self.states is not None
        states, count = self.states.clone(), self.num_states.clone()
        fill(self, window)
        if not count:  # the capture itself compares with an eager forward
            return
        if fault == "old states":
            self.states.copy_(states)
        elif fault == "old count":
            self.num_states.copy_(count)
        else:
            self.num_states.fill_(self.states.shape[1])

    monkeypatch.setattr(CapturedForward, "fill", stale)
    with pytest.raises(AssertionError):
        compare(kind, tmp_path, [0, 3, 2, 0, 4, 1, 3, 0])


@pytest.mark.parametrize("kind", KIND)
def test_a_batch(kind: str, tmp_path: Path) -> None:
    """Each sequence of a batch has its own states; all get plain `generate`'s text."""
    model, used = KINDS[kind](tmp_path)
    used.runners = RunnerPool("cuda_graphs", Recorder())
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(vocab_size, (2, 12), generator=torch.Generator().manual_seed(4))
    options: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(ids).index_fill(1, torch.arange(3), 0)
    expected = model.generate(ids, **options)
    options |= {"assistant_model": used, "custom_generate": "hf_failfast"}
    assert torch.equal(model.generate(ids, **options), expected)
    assert used.runners._kept[model]["drafter"].idle
