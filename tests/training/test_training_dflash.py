"""DFlash as an output format: what was trained is what the reader of published checkpoints drafts, in both layouts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import LOOPS, plain
from safetensors.torch import load_file
from sessions import draft_of, session_of
from training_support import PROVENANCE, VOCABULARY, random_examples, talkative_target, tiny_target, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from hf_failfast import load_drafter
from hf_failfast.cli.app import app
from hf_failfast.drafters.checkpoints.inspection import inspect_checkpoint
from hf_failfast.drafters.conditioned.dflash import DFlashDrafter
from hf_failfast.policies.confidence import FixedLength
from hf_failfast.serving.export import export_for_vllm
from hf_failfast.training.canvases import Canvases
from hf_failfast.training.config import TrainingConfig
from hf_failfast.training.dflash import BlockDrafter, fused_layers, rarest_token, stored_vocabulary
from hf_failfast.training.trainer import Trainer

K = 5
CONFIG = TrainingConfig(steps=2, form="dflash", layers=(1, 5), canvas_length=K, batch_size=2, anchors=3)
SPECULATORS = replace(CONFIG, layout="speculators", draft_vocabulary=40)
LAYOUTS = {
    "z-lab": CONFIG,
    "speculators": SPECULATORS,
    "speculators, all ids": replace(SPECULATORS, draft_vocabulary=0),
    "narrow": replace(CONFIG, intermediate_size=16),
}
FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2"]


def target_of(model_type: str = "llama") -> PreTrainedModel:
    """Its weights are numbers of bfloat16, as a checkpoint's copy of its head must be."""
    target = tiny_target(model_type, layers=8)
    for parameter in target.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return target


def new_trainer(folder: Path, config: TrainingConfig = CONFIG, model_type: str = "llama", count: int = 9) -> Trainer:
    data = (random_examples(count), random_examples(3))
    return Trainer(target_of(model_type), data, config, folder, PROVENANCE)


def trained(folder: Path, config: TrainingConfig = CONFIG, model_type: str = "llama") -> BlockDrafter:
    """A drafter with the exported weights, without the trainer's autocast."""
    trainer = new_trainer(folder, config, model_type)
    trainer.train()
    drafter = trainer.drafter
    assert isinstance(drafter, BlockDrafter)
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter.copy_(parameter.bfloat16())
    return drafter


def features_of(target: PreTrainedModel, tokens: torch.Tensor, drafter: BlockDrafter) -> torch.Tensor:
    states = target(tokens, output_hidden_states=True).hidden_states
    return torch.stack([states[state] for state in drafter.target_states], dim=2)


@pytest.mark.parametrize(
    ("layout", "model_type"),
    [*((layout, "llama") for layout in LAYOUTS), *(("z-lab", model_type) for model_type in FAMILIES[1:])],
)
@torch.no_grad()
def test_the_loaded_checkpoint_drafts_what_was_trained(layout: str, model_type: str, tmp_path: Path) -> None:
    with torch.enable_grad():
        exact = trained(tmp_path, LAYOUTS[layout], model_type)
    target = target_of(model_type)
    tokens = torch.randint(5, VOCABULARY, (1, 16))
    features = features_of(target, tokens, exact)
    anchors = torch.tensor([[15, 7, 1]])
    _, outputs = exact(Canvases(tokens, anchors, K), features)
    logits = exact.logits(outputs)
    if exact.draft_vocabulary is not None:
        whole = logits.new_full((*logits.shape[:-1], VOCABULARY), -torch.inf)
        logits = whole.index_copy(-1, exact.draft_vocabulary, logits)
    probs = logits.softmax(-1)
    probs[..., exact.mask_token_id] = 0  # the reader drafts no masks

    drafter = load_drafter(tmp_path, dtype=torch.float32)
    assert isinstance(drafter, DFlashDrafter)
    assert drafter.block_size == K + 1
    assert drafter.target_layers == exact.target_states
    for number, anchor in enumerate(anchors[0].tolist()):
        session = session_of(drafter, target, 40)
        session.observe([features[:, :anchor].flatten(2)])
        draft = draft_of(session, tokens[:, : anchor + 1], FixedLength(K), 20)
        expected, token_ids = probs[:, number].max(-1)
        assert draft.token_ids.tolist() == token_ids.tolist()
        torch.testing.assert_close(draft.confidence, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_block_sees_no_state_from_its_anchor_on_and_no_other_block() -> None:
    target = target_of()
    drafter = BlockDrafter(target, [1, 5], mask_token_id=2)
    tokens = torch.randint(5, VOCABULARY, (2, 12))
    anchors = torch.tensor([[7, 3], [11, 0]])
    features = features_of(target, tokens, drafter)
    _, packed = drafter(Canvases(tokens, anchors, K), features)
    for row in range(2):
        for block, anchor in enumerate(anchors[row].tolist()):
            changed = features[row : row + 1].clone()
            changed[:, anchor:] = 9.0
            one = Canvases(tokens[row : row + 1], torch.tensor([[anchor]]), K)
            _, alone = drafter(one, changed)
            torch.testing.assert_close(packed[row, block], alone[0, 0], atol=1e-5, rtol=1e-5)
            if anchor:
                changed[:, anchor - 1] = 9.0
                assert (drafter(one, changed)[1] - alone).abs().max() > 1e-3


@torch.no_grad()
def test_layers_begin_as_the_targets(tmp_path: Path) -> None:
    target = target_of("qwen3")
    drafter = BlockDrafter(target, [1, 5], mask_token_id=2)
    for new, old in enumerate((1, 5)):
        for name, value in target.model.layers[old].state_dict().items():
            torch.testing.assert_close(drafter.body.layers[new].state_dict()[name], value)
    for model_type in ("llama", "gemma2"):
        target = target_of(model_type)
        drafter = BlockDrafter(target, [1, 5], mask_token_id=2)
        found, own = drafter.body.layers[1], target.model.layers[5]
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
            assert torch.equal(found.get_submodule(part).weight, own.get_submodule(part).weight)
        inputs = torch.randn(1, 400, 32)
        torch.testing.assert_close(drafter.body.norm(inputs), target.model.norm(inputs), atol=1e-4, rtol=1e-4)
        read = own.input_layernorm(inputs)
        for name in ("q", "k"):
            theirs = getattr(own.self_attn, f"{name}_proj")(read).unflatten(-1, (-1, 8))
            ours = getattr(found.self_attn, f"{name}_norm")(theirs)
            assert ours.square().mean() == pytest.approx(float(theirs.square().mean()), rel=0.1)


@pytest.mark.parametrize("layout", ["z-lab", "speculators"])
def test_generation_is_lossless(layout: str, tmp_path: Path) -> None:
    trained(tmp_path, LAYOUTS[layout])
    target, drafter = target_of(), load_drafter(tmp_path, dtype=torch.float32)
    prompt = torch.randint(5, VOCABULARY, (1, 9))
    expected = plain(target, prompt, max_new_tokens=24)
    for loop in LOOPS.values():
        assert torch.equal(loop(target, prompt, drafter, max_new_tokens=24), expected)


def test_the_z_lab_layout(tmp_path: Path) -> None:
    """The keys and names of a published checkpoint, and no key of ours."""
    drafter = trained(tmp_path)
    published = Path(__file__).parents[1] / "data" / "families" / "dflash" / "case_1" / "checkpoint"
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (published, tmp_path))
    assert set(theirs) - set(ours) == {"auto_map", "bos_token_id", "eos_token_id"}
    assert set(ours) <= set(theirs)
    assert {key: type(value) for key, value in ours.items() if key != "rope_theta"} == {
        key: type(value) for key, value in theirs.items() if key in ours and key != "rope_theta"
    }
    assert ours["dflash_config"] == {"mask_token_id": drafter.mask_token_id, "target_layer_ids": [1, 2, 3, 4, 5]}
    assert (ours["block_size"], ours["num_target_layers"], ours["num_hidden_layers"]) == (K + 1, 8, 2)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path, published))
    assert set(weights) == set(expected)
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    found = inspect_checkpoint(tmp_path)
    assert (found.family, found.chunk_per_pass) == ("DFlash", K)


def test_the_speculators_layout(tmp_path: Path) -> None:
    drafter = trained(tmp_path, SPECULATORS)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "model_type" not in config and config["transformer_layer_config"]["model_type"] == "qwen3"
    assert config["aux_hidden_state_layer_ids"] == [2, 3, 4, 5, 6]  # one more than z-lab's: outputs
    assert (config["draft_vocab_size"], config["block_size"]) == (40, K + 1)
    assert config["speculators_config"]["verifier"] == {
        "architectures": ["LlamaForCausalLM"],
        "name_or_path": "tiny",
    }
    weights = load_file(tmp_path / "model.safetensors")
    vocabulary = stored_vocabulary(weights)
    assert torch.equal(vocabulary, drafter.draft_vocabulary)
    assert weights["t2d"].nonzero()[:, 0].tolist() == vocabulary.tolist()
    assert torch.equal(weights["lm_head.weight"].float(), target_of().lm_head.weight[vocabulary])
    assert inspect_checkpoint(tmp_path).family == "DFlash of speculators"


@pytest.mark.parametrize("layout", ["z-lab", "speculators"])
def test_vllm_gets_the_checkpoint_as_it_is(layout: str, tmp_path: Path) -> None:
    trained(tmp_path / "drafter", LAYOUTS[layout])
    told = export_for_vllm(tmp_path / "drafter", tmp_path / "out")
    assert '"method": "dflash"' in told and f'"num_speculative_tokens": {K}' in told
    config, copied = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("drafter", "out"))
    assert copied == config


def test_a_resumed_run_is_bit_exact_and_keeps_its_mask(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=4, evaluation_steps=2)
    straight = new_trainer(tmp_path / "straight", config)
    record = straight.train()
    first = new_trainer(tmp_path / "resumed", config)
    for _ in range(2):
        first.train_step()
    first.save(first.evaluate())
    second = new_trainer(tmp_path / "resumed", config)
    assert second.step == 2
    assert second.train()["held_out"] == record["held_out"]
    for one, other in zip(straight.parameters, second.parameters, strict=True):
        assert torch.equal(one, other)
    third = new_trainer(tmp_path / "resumed", replace(config, steps=5), count=40)
    assert third.drafter.mask_token_id == straight.drafter.mask_token_id


@pytest.mark.parametrize("layout", ["z-lab", "speculators"])
def test_training_goes_on_from_a_checkpoint(layout: str, tmp_path: Path) -> None:
    before = trained(tmp_path / "first", LAYOUTS[layout])
    initial = str(tmp_path / "first")
    after = new_trainer(tmp_path / "second", replace(LAYOUTS[layout], initial=initial), count=40).drafter
    assert after.mask_token_id == before.mask_token_id
    for name, value in before.stored_weights().items():
        assert torch.equal(after.stored_weights()[name], value)
    if before.draft_vocabulary is not None:
        assert torch.equal(after.draft_vocabulary, before.draft_vocabulary)
    whole = new_trainer(tmp_path / "whole", replace(CONFIG, initial=initial)).drafter
    assert whole.draft_vocabulary is None and set(whole.stored_state()) == set(before.stored_weights())
    with pytest.raises(ValueError, match="`initial` must be a drafter of the same layers"):
        new_trainer(tmp_path / "third", replace(LAYOUTS[layout], initial=initial, layers=(1, 2, 5)))


def test_training_learns(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=40, warmup_steps=5, learning_rate=1e-2, batch_size=9, evaluation_steps=40)
    trainer = new_trainer(tmp_path, config)
    losses = [trainer.train_step()["loss"] for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_mask_is_an_id_that_no_text_holds() -> None:
    texts = [torch.tensor([0, 1, 3, 5]), torch.tensor([5, 4])]
    assert rarest_token(texts, 8, never=[7]) == 6
    assert rarest_token(texts, 6, never=[2]) == 4  # all others are in a text: the highest of the rarest
    assert rarest_token(texts, 6, never=[]) == 2


@pytest.mark.parametrize(
    ("total", "layers"),
    [(36, (1, 9, 17, 25, 33)), (30, (1, 8, 14, 20, 27)), (5, (1, 2)), (3, (0, 1)), (2, (0,)), (1, (0,))],
)
def test_fused_layers_are_spread(total: int, layers: tuple[int, ...]) -> None:
    assert fused_layers(total) == layers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "eagle"}, r"`form` must be one of \['canvas', 'dflash'\], got 'eagle'"),
        ({"layout": "vllm"}, r"`layout` must be one of \['z-lab', 'speculators'\], got 'vllm'"),
        ({"conditioned": True}, "`form` 'dflash' has its own way"),
        ({"attention": "block_causal"}, "`form` 'dflash' has its own way"),
        ({"form": "canvas", "layout": "speculators"}, "`layout` 'speculators' needs `form` 'dflash'"),
        ({"draft_vocabulary": 50}, "`draft_vocabulary` and `coverage` need `layout` 'speculators'"),
        ({"lora": True}, "`form` does not fit `lora`"),
        ({"drafter_window": 64}, "`drafter_window` needs `form` 'canvas', got 64"),
        ({"coverage": 0.9}, "`draft_vocabulary` and `coverage` need `layout` 'speculators'"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **fields)


def test_the_draft_vocabulary_follows_the_form() -> None:
    found = TrainingConfig(steps=1)
    assert found.vocabulary_size == found.settings()["draft_vocabulary"] == 8192
    assert TrainingConfig(steps=1, form="dflash").vocabulary_size == 0
    assert TrainingConfig(steps=1, form="dflash", layout="speculators").vocabulary_size == 8192
    assert TrainingConfig(steps=1, draft_vocabulary=0).vocabulary_size == 0


@pytest.mark.parametrize("model_type", ["olmo", "olmo2"])
def test_a_target_with_other_norms_is_refused(model_type: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    target = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, vocab_size=64, **sizes))
    with pytest.raises(ValueError, match="`form` 'dflash' needs a target with RMS norms"):
        BlockDrafter(target, [0], mask_token_id=2)


@pytest.mark.parametrize("layout", ["z-lab", "speculators"])
def test_the_command_writes_a_checkpoint(layout: str, tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    talkative_target().save_pretrained(target)
    tiny_tokenizer().save_pretrained(target)
    counts = ["--questions", "40", "--answer-tokens", "8", "--synthesis-batch-size", "64", "--steps", "2"]
    sizes = ["--canvas-length", "4", "--batch-size", "2", "--anchors", "2", "--form", "dflash", "--layout", layout]
    command = ["train", "--target", str(target), "--output", str(tmp_path / "drafter"), *counts, *sizes]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert load_drafter(tmp_path / "drafter").block_size == 5
    card = (tmp_path / "drafter" / "README.md").read_text()
    assert f"DFlash's, {layout}'s layout" in card
    assert "they read the target's hidden states" in card
