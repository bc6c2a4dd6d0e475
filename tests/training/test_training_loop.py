"""The training loop on tiny random models: resuming, the exported folder, the command."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_support import (
    PROVENANCE,
    VOCABULARY,
    random_examples,
    talkative_target,
    tiny_target,
    tiny_tokenizer,
)
from transformers import AutoConfig
from typer.testing import CliRunner

from hf_failfast.cli.app import app
from hf_failfast.drafters.loading import load_drafter
from hf_failfast.training.config import TrainingConfig
from hf_failfast.training.data.shards import Example
from hf_failfast.training.precision import training_dtype
from hf_failfast.training.trainer import Trainer, learning_rate_factor

TRAINING = TrainingConfig(
    steps=6, layers=(0, 3), canvas_length=4, draft_vocabulary=50, batch_size=2, anchors=3, evaluation_steps=3
)


def new_trainer(output: Path, config: TrainingConfig = TRAINING) -> Trainer:
    return Trainer(tiny_target(), (random_examples(9), random_examples(3)), config, output, PROVENANCE)


def test_resumed_training_is_bit_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = new_trainer(tmp_path / "straight")
    record = straight.train()

    first = new_trainer(tmp_path / "resumed")
    save = first.save

    def save_and_die(record: dict[str, object]) -> None:
        save(record)
        if record["step"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(first, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = new_trainer(tmp_path / "resumed")
    assert second.step == 3
    assert second.train()["held_out"] == record["held_out"]
    for one, other in zip(straight.parameters, second.parameters, strict=True):
        assert torch.equal(one, other)
    steps = [json.loads(line)["step"] for line in (tmp_path / "resumed" / "train_log.jsonl").read_text().splitlines()]
    assert steps == [0, 3, 6]

    # More data may be given to a run that goes on; what it can draft stays.
    more = (random_examples(15), random_examples(3))
    third = Trainer(tiny_target(), more, replace(TRAINING, steps=7), tmp_path / "resumed", PROVENANCE)
    assert torch.equal(third.drafter.draft_vocabulary, straight.drafter.draft_vocabulary)
    assert third.train()["step"] == 7

    with pytest.raises(ValueError, match=r"`anchors` must be 3 as in .*, got 4"):
        new_trainer(tmp_path / "resumed", replace(TRAINING, anchors=4))


def test_training_learns_one_repeated_batch(tmp_path: Path) -> None:
    config = replace(TRAINING, steps=40, warmup_steps=5, learning_rate=1e-2, batch_size=9, evaluation_steps=40)
    trainer = new_trainer(tmp_path, config)
    losses = [trainer.train_step()["loss"] for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]


def test_exported_folder_keeps_the_contract_of_the_loader(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    trainer.train()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["failfast"].pop("target_fingerprint").startswith(f"{VOCABULARY}:")
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert (config["num_hidden_layers"], config["vocab_size"]) == (2, VOCABULARY)
    assert config["failfast"] == {
        "attention": "causal_canvas",
        "shift": 1,
        "mask_token_id": VOCABULARY,
        "noise": "mask",
        "shared_embeddings": True,
        "conditioned": False,
        "canvas_length": 4,
        "confidence_threshold": 0.45,
        "chunk_length": 4,
        "max_draft_length": 16,
        "target": "tiny",
        "source_layers": [0, 3],
    }
    assert AutoConfig.from_pretrained(tmp_path).num_hidden_layers == 2

    weights = load_file(tmp_path / "model.safetensors")
    vocabulary = weights.pop("draft_vocabulary")
    assert vocabulary.dtype == torch.int32
    assert vocabulary.tolist() == sorted(set(vocabulary.tolist())) and 3 in vocabulary
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert weights["mask_embedding"].shape == (32,)
    body = set(tiny_target().model.state_dict())
    expected = {f"model.{name}" for name in body if name.startswith(("layers.0.", "layers.1.", "norm."))}
    assert set(weights) == expected | {"mask_embedding"}

    drafter = load_drafter(tmp_path)
    assert drafter.spec.attention == "causal_canvas"

    record = json.loads((tmp_path / "training.json").read_text())
    assert record["step"] == 6 and record["config"]["canvas_length"] == 4
    card = (tmp_path / "README.md").read_text()
    assert "license: apache-2.0" in card and f"**{record['held_out']['mean_acceptance_length']:.2f}**" in card


@pytest.mark.parametrize(("window", "stored"), [(256, None), (16, 16), (0, 0)])
def test_a_drafter_sees_as_far_back_as_in_training(tmp_path: Path, window: int, stored: int | None) -> None:
    trainer = new_trainer(tmp_path, replace(TRAINING, steps=1, drafter_window=window))
    trainer.train()
    canvases, _ = trainer.plan.every(trainer.examples[:1])
    assert canvases.window == trainer.plan.fixed(trainer.examples[:1]).window == window
    assert json.loads((tmp_path / "config.json").read_text())["failfast"].get("drafter_window") == stored
    assert load_drafter(tmp_path).window == window


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    assert learning_rate_factor(0, 0.0, 10) == pytest.approx(0.1)
    assert learning_rate_factor(50, 0.5, 10) == pytest.approx(0.5)
    assert learning_rate_factor(100, 1.0, 10) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": None}, "`steps` or `minutes` must be given"),
        ({"canvas_length": 1}, "`canvas_length` must be at least 2, got 1"),
        ({"learning_rate": 0.0}, "`learning_rate` must be positive, got 0.0"),
        ({"head_fraction": 1.5}, r"`head_fraction` must be in \(0, 1\], got 1.5"),
        ({"drafter_window": 15}, "`drafter_window` must be 0 or at least 16, got 15"),
        ({"drafter_window": -1}, "`drafter_window` must be 0 or at least 16, got -1"),
    ],
)
def test_bad_settings_name_field_bound_and_value(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TRAINING, **fields)


def test_train_command_goes_from_a_target_folder_to_a_drafter_folder(tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    talkative_target().save_pretrained(target)
    tiny_tokenizer().save_pretrained(target)
    counts = ["--questions", "40", "--answer-tokens", "8", "--synthesis-batch-size", "64"]
    sizes = ["--steps", "2", "--canvas-length", "4", "--batch-size", "2", "--anchors", "2", "--seed", "1"]
    command = ["train", "--target", str(target), "--output", str(tmp_path / "drafter"), *counts, *sizes]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "drafter" / "config.json").read_text())
    assert config["failfast"]["target"] == "tiny"
    assert config["failfast"]["source_layers"] == [0]


def test_streak_needs_sampled_answers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`streak_weight` needs sampled answers"):
        new_trainer(tmp_path, replace(TRAINING, streak_weight=1.0))


def test_a_step_needs_as_many_questions_as_it_reads(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`batch_size` times `accumulation` .* at most 9.* got 10"):
        new_trainer(tmp_path, replace(TRAINING, accumulation=5))


def test_states_that_are_not_stored_are_computed(tmp_path: Path) -> None:
    """Stored and recomputed states train the same drafter, up to the rounding of stored ones."""
    target = tiny_target()

    def with_states(example: Example, stored: bool) -> Example:
        states = target(example.tokens[None], output_hidden_states=True).hidden_states[-1][0].detach()
        return replace(example, hidden=states[example.prompt_length - 1 : -1] if stored else None)

    losses = []
    for stored in (True, False):
        data = tuple([with_states(e, stored) for e in random_examples(count)] for count in (9, 3))
        trainer = Trainer(target, data, TRAINING, tmp_path / str(stored), PROVENANCE)
        assert (trainer.teacher is None) == stored
        losses.append([trainer.train_step()["loss"] for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_average_is_what_is_evaluated_and_exported(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, replace(TRAINING, ema_decay=0.5, steps=2, evaluation_steps=2))
    expected = [p.detach().clone() for p in trainer.parameters]
    for _ in range(2):
        trainer.train_step()
        expected = [0.5 * old + 0.5 * new.detach() for old, new in zip(expected, trainer.parameters, strict=True)]
    trained = trainer.drafter.mask_embedding.detach().clone()
    trainer.save(trainer.evaluate())
    exported = load_file(tmp_path / "model.safetensors")["mask_embedding"]
    index = next(i for i, p in enumerate(trainer.parameters) if p is trainer.drafter.mask_embedding)
    torch.testing.assert_close(exported, expected[index].bfloat16())
    assert torch.equal(trainer.drafter.mask_embedding, trained)


def test_ctrl_c_stores_the_step_and_training_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop between two evaluations keeps every step; the resumed run ends with the weights of a straight one."""
    straight = new_trainer(tmp_path / "straight")
    record = straight.train()
    first = new_trainer(tmp_path / "resumed")
    step = first.train_step

    def step_and_press() -> dict[str, float]:
        if first.step == 3:  # while the fourth of six steps runs: evaluations are after the third and the sixth
            signal.raise_signal(signal.SIGINT)
        return step()

    monkeypatch.setattr(first, "train_step", step_and_press)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert signal.getsignal(signal.SIGINT) is before
    second = new_trainer(tmp_path / "resumed")
    assert second.step == 4
    ended = second.train()
    assert (ended["held_out"], ended["losses"]) == (record["held_out"], record["losses"])
    for one, other in zip(straight.parameters, second.parameters, strict=True):
        assert torch.equal(one, other)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = new_trainer(tmp_path)

    def press_twice() -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the step went on")

    monkeypatch.setattr(trainer, "train_step", press_twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 0


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_without_bfloat16_products_trains_in_float32(
    supported: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_failfast.training.precision.computes_in", lambda asked: supported)
    assert training_dtype(torch.device("cpu")) == dtype
    assert training_dtype(torch.device("cuda")) == torch.bfloat16


def test_checkpoints_of_before_the_conditioned_options_go_on(tmp_path: Path) -> None:
    """Their standalone runs do; a conditioned one had no input fusion and must be told so."""
    for folder, config in {"alone": TRAINING, "conditioned": replace(TRAINING, conditioned=True)}.items():
        fused = replace(config, input_fusion=False, extended=0.0)
        trainer = new_trainer(tmp_path / folder, replace(fused, steps=1))
        trainer.train()
        state = torch.load(tmp_path / folder / "checkpoint.pt")
        for name in ("input_fusion", "extended"):
            del state["config"][name]
        torch.save(state, tmp_path / folder / "checkpoint.pt")
        assert new_trainer(tmp_path / folder, fused).step == 1
    assert new_trainer(tmp_path / "alone").step == 1
    with pytest.raises(ValueError, match="`input_fusion` must be False"):
        new_trainer(tmp_path / "conditioned", replace(TRAINING, conditioned=True))
