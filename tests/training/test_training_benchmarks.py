"""The benchmarks of training on a tiny target: each variant trains as it says, and rivals write the target's text."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import equal_time
import pytest
import rival
import torch
from trainers import AdafactorTrainer, InFloat32, MuonTrainer, OnPolicyTrainer, RoundStarts
from training_support import PROVENANCE, greedy_answers, random_examples, tiny_target

from hf_failfast import load_drafter
from hf_failfast.measure.methods import load_assistant
from hf_failfast.measure.timing import Prompts
from hf_failfast.training.config import TrainingConfig
from hf_failfast.training.objective import held_out_drafts
from hf_failfast.training.trainer import Trainer

SETTINGS: dict[str, Any] = {"steps": 3, "layers": (0, 3), "canvas_length": 4, "batch_size": 2, "anchors": 6}
CONFIG = TrainingConfig(**SETTINGS)
TOKENS = 20


def new_trainer(kind: type[Trainer], folder: Path, config: TrainingConfig = CONFIG) -> Any:
    return kind(tiny_target(), (random_examples(9), random_examples(3)), config, folder, PROVENANCE)


@pytest.mark.parametrize("name", equal_time.VARIANTS)
def test_every_variant_trains_and_is_measured(name: str, tmp_path: Path) -> None:
    examples = greedy_answers(4, TOKENS)
    found = equal_time.run(name, tiny_target(), (examples, examples[:2]), examples[:3], SETTINGS, tmp_path)
    assert (found["variant"], found["seed"], found["steps"]) == (name, 0, 3)
    assert found["decoding"]["low"] <= found["decoding"]["mean_acceptance_length"] <= found["decoding"]["high"]
    assert len(found["decoding"]["acceptance_by_position"]) == 4
    assert (tmp_path / "model.safetensors").exists()


def test_time_is_processor_time_and_ends_the_run(tmp_path: Path) -> None:
    trainer = new_trainer(Trainer, tmp_path, replace(CONFIG, steps=None, minutes=0.01))
    record = equal_time.trained(trainer)
    assert 0.6 <= trainer.seconds < 6 and record["step"] == trainer.step > 1


def test_finished_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the output holds is not run again; the drafters of the first seed are kept."""
    examples = greedy_answers(4, TOKENS)
    monkeypatch.setattr(equal_time, "load_examples", lambda folder: (examples, examples[:2]))
    monkeypatch.setattr(equal_time, "load_smollm2", lambda dtype: (tiny_target(), None))
    monkeypatch.setattr(equal_time, "unseen_examples", lambda *given: examples[:3])
    monkeypatch.setattr(equal_time, "VARIANTS", dict.fromkeys(("one", "two"), (Trainer, SETTINGS)))
    output, keep = tmp_path / "result.json", tmp_path / "kept"
    given: dict[str, Any] = {"data": tmp_path, "output": output, "minutes": 60, "variants": "two", "keep": keep}
    rest: dict[str, Any] = {"learning_rate": 1e-3, "anchors": 6, "held_out": 2, "every": 1}
    equal_time.main(seeds=1, **given | rest)
    (first,) = json.loads(output.read_text())["runs"]
    assert load_drafter(keep / "two") is not None

    monkeypatch.setattr(equal_time, "run", lambda name, *_: {"variant": name, "seed": _[3]["seed"]})
    equal_time.main(seeds=2, **given | rest | {"variants": None})
    document = json.loads(output.read_text())
    assert document["runs"][0] == first
    assert [(run["variant"], run["seed"]) for run in document["runs"][1:]] == [("one", 0), ("one", 1), ("two", 1)]
    assert (document["minutes"], document["prompts"], document["training_answers"]) == (60, 3, 4)


def test_the_last_third_begins_where_rounds_begin(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=30, learning_rate=2e-2, warmup_steps=5, cross_entropy_weight=1.0, batch_size=4)
    examples = greedy_answers(4, TOKENS)
    trainer = OnPolicyTrainer(tiny_target(), (examples, examples[:2]), config, tmp_path, PROVENANCE)
    for _ in range(20):
        assert not isinstance(trainer.plan, RoundStarts)
        trainer.train_step()
    trainer.train_step()
    plan = trainer.plan
    assert isinstance(plan, RoundStarts)

    canvases, starts = plan.every(examples)
    matches = held_out_drafts(trainer.drafter, trainer._batch(examples, canvases)).matches.unflatten(0, starts.shape)
    expected = []
    for example, rows in zip(examples, matches.tolist(), strict=True):
        begun, written = [], 0
        while written < example.answer_length:
            begun.append(written)
            written += [*rows[written], False].index(False) + 1
        expected.append(begun)
    assert trainer.round_starts(examples) == expected
    assert min(map(len, expected)) < TOKENS  # some draft was right

    anchors = plan.random(examples, torch.Generator().manual_seed(0))
    for row, example, begun in zip(anchors.tolist(), examples, expected, strict=True):
        assert {position - example.prompt_length + 1 for position in row} <= set(begun)


def test_muon_turns_gradients_of_matrices_into_orthogonal_steps(tmp_path: Path) -> None:
    trainer = new_trainer(MuonTrainer, tmp_path, replace(CONFIG, warmup_steps=0))
    before = [p.detach().clone() for p in trainer.parameters]
    trainer.train_step()
    sizes = []
    for old, new in zip(before, trainer.parameters, strict=True):
        if new.ndim == 2:
            sizes += (torch.linalg.svdvals(new.detach() - old) / (0.2 * max(new.shape) ** 0.5)).tolist()
        else:
            assert not torch.equal(old, new)
    sizes = torch.tensor(sizes) / CONFIG.learning_rate
    assert ((sizes > 0.3) & (sizes < 1.3)).float().mean() > 0.9


def test_bfloat16_is_left_out_on_request() -> None:
    number = torch.tensor([1 + 2**-10])
    with InFloat32():
        same = number.bfloat16()
    assert same.dtype == torch.float32 and torch.equal(same, number) and same is not number
    assert number.bfloat16().dtype == torch.bfloat16


def state_bytes(trainer: Trainer) -> int:
    states = trainer.optimizer.state.values()
    return sum(v.numel() * v.element_size() for s in states for v in s.values() if isinstance(v, torch.Tensor))


def test_small_states_are_small(tmp_path: Path) -> None:
    """Bytes that an optimizer keeps, of AdamW's 8 a weight: Adafactor those of rows and columns only."""
    trainers = {kind: new_trainer(kind, tmp_path / kind.__name__) for kind in (Trainer, AdafactorTrainer)}
    kept = {}
    for kind, trainer in trainers.items():
        trainer.train_step()
        kept[kind] = state_bytes(trainer) / sum(p.numel() for p in trainer.parameters)
    assert kept[Trainer] == pytest.approx(8, abs=0.1)
    assert kept[AdafactorTrainer] < 0.6  # tiny matrices have long edges for their size


def test_rivals_write_the_target_s_text(tmp_path: Path) -> None:
    target, examples = tiny_target(), greedy_answers(2, TOKENS)
    for name in ("standalone", "autoregressive"):
        settings = SETTINGS | {"canvas_length": 8, "steps": 30, "learning_rate": 2e-2, "warmup_steps": 5}
        equal_time.run(name, target, (examples, examples[:2]), examples, settings, tmp_path / name)
    drafter = load_drafter(tmp_path / "standalone", dtype=torch.float32)
    rivals = [load_assistant(str(tmp_path / "autoregressive"), target) for _ in range(3)]
    prompts = [Prompts.greedy(each.tokens[None, : each.prompt_length], TOKENS) for each in examples]
    every = rival.methods(drafter, rivals)
    assert [name.partition(",")[0] for name in every] == ["plain", *["diffusion"] * 2, *["autoregressive"] * 3]
    methods = {name: every[name] for name in ("plain", "diffusion, whole drafts of 8", "autoregressive, at most 2")}
    rows = {row["method"]: row for row in rival.compared(target, methods, prompts, 1)}
    assert list(rows) == list(methods) and rows["plain"]["speedup"] == 1
    assert {row["identical"] for row in rows.values()} == {1.0}
    for name, row in rows.items():
        if name != "plain":
            assert row["low"] <= row["speedup"] <= row["high"] and row["tokens_per_round"] > 1
    assert rows["diffusion, whole drafts of 8"]["passes_per_round"] <= 2
    assert rows["autoregressive, at most 2"]["passes_per_round"] <= 2
