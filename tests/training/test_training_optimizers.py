"""A checkpoint that is small: 8-bit moments, weights that bfloat16 holds, and still the same run after a resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import PROVENANCE, VOCABULARY, random_examples
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from hf_failfast.cli import extras
from hf_failfast.cli.app import app
from hf_failfast.training.config import TrainingConfig
from hf_failfast.training.optimizers import compact, round_at_random
from hf_failfast.training.trainer import Trainer

WIDTH = 576
MIB = 2**20
SMALL = TrainingConfig(
    steps=2, layers=(0, 1, 2, 3), canvas_length=4, batch_size=2, anchors=2, evaluation_steps=2, optimizer="adamw8bit"
)


def target_of_bundled_size() -> PreTrainedModel:
    """Layers of SmolLM2-135M's shape, as the bundled drafter has them; its embedding is small."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 1536, "num_hidden_layers": 4, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ids)).eval()


def new_trainer(output: Path, config: TrainingConfig = SMALL) -> Trainer:
    data = (random_examples(5, WIDTH), random_examples(2, WIDTH))
    return Trainer(target_of_bundled_size(), data, config, output, PROVENANCE)


def test_a_small_checkpoint_resumes_bit_for_bit(tmp_path: Path) -> None:
    straight = new_trainer(tmp_path / "straight")
    straight.train()
    assert 14e6 < sum(p.numel() for p in straight.parameters) < 14.5e6
    first = new_trainer(tmp_path / "resumed", replace(SMALL, steps=1))
    first.train()
    assert (tmp_path / "resumed" / "checkpoint.pt").stat().st_size < 64 * MIB
    second = new_trainer(tmp_path / "resumed")
    assert second.step == 1
    second.train()
    for one, other in zip(straight.parameters, second.parameters, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, one.bfloat16().float())
    before = new_trainer(tmp_path / "new").parameters
    assert not any(torch.equal(one, other) for one, other in zip(before, straight.parameters, strict=True))

    with pytest.raises(ValueError, match=r"`optimizer` must be 'adamw8bit' as in .*, got 'adamw'"):
        new_trainer(tmp_path / "resumed", replace(SMALL, optimizer="adamw"))


def test_checkpoints_of_before_the_option_are_of_adamw(tmp_path: Path) -> None:
    config = replace(SMALL, optimizer="adamw", steps=1, layers=(0,))
    trainer = new_trainer(tmp_path, config)
    trainer.train()
    path = tmp_path / "checkpoint.pt"
    assert path.stat().st_size > 12 * sum(p.numel() for p in trainer.parameters)
    state = torch.load(path)
    del state["config"]["optimizer"]
    torch.save(state, path)
    assert new_trainer(tmp_path, config).step == 1
    with pytest.raises(ValueError, match=r"`optimizer` must be 'adamw' as in"):
        new_trainer(tmp_path, replace(config, optimizer="adamw8bit"))


def test_rounding_at_random_is_right_on_average() -> None:
    number = 1 + 0.25 * 2**-7  # a quarter of the way to the next bfloat16
    values = torch.tensor([number, -number, 0.0, 1.5]).repeat(20_000, 1)
    round_at_random([values], torch.Generator().manual_seed(0))
    assert set(values[:, 0].tolist()) == {1.0, 1 + 2**-7} and set(values[:, 1].tolist()) == {-1.0, -1 - 2**-7}
    assert values.mean(dim=0).tolist() == pytest.approx([number, -number, 0.0, 1.5], abs=1e-4)
    assert torch.equal(values[:, 2:], torch.tensor([0.0, 1.5]).expand(20_000, 2))


def test_only_what_bfloat16_holds_is_stored_in_it() -> None:
    whole = torch.tensor([1.5, -0.25])
    assert compact(whole).dtype == torch.bfloat16
    assert torch.equal(compact(whole + 2**-20), whole + 2**-20)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`optimizer` must be one of \['adamw', 'adamw8bit'\], got 'sgd'"):
        replace(SMALL, optimizer="sgd")


def test_what_is_missing_is_named_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = extras.importlib.util.find_spec
    monkeypatch.setattr(
        extras.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    command = ["train", "--target", str(tmp_path), "--output", str(tmp_path / "drafter"), "--optimizer", "adamw8bit"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and 'pip install "hf_failfast[quantised]"' in result.output
