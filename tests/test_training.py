"""Training on tiny random models: the packed canvas mask, the losses, resuming, and the exported folder."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from hf_failfast.cli import app
from hf_failfast.drafters.loading import load_drafter
from hf_failfast.training import data as data_module
from hf_failfast.training.batches import batch_indices, collate, draft_index, even_anchors
from hf_failfast.training.config import DataConfig, TrainingConfig
from hf_failfast.training.data import Example, Synthesiser, load_examples, synthesise
from hf_failfast.training.export import Provenance
from hf_failfast.training.loop import Trainer, learning_rate_factor
from hf_failfast.training.losses import (
    IGNORE,
    leading_matches,
    position_weights,
    weighted_cross_entropy,
    weighted_regression,
)
from hf_failfast.training.model import CanvasDrafter, Canvases, frequent_tokens
from hf_failfast.training.objective import acceptance

SPECIALS = ["<pad>", "<s>", "<user>", "<end>", "<assistant>"]
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
VOCABULARY = len(SPECIALS) + len(CHARACTERS)
TEMPLATE = (
    "{% for turn in messages %}<user>{{ turn['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PROVENANCE = Provenance("tiny", "apache-2.0", "hf-failfast train", {"shards": []})


def tiny_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per character."""
    vocabulary = {token: i for i, token in enumerate(SPECIALS + CHARACTERS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<end>",
        extra_special_tokens=SPECIALS[2:],
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_target(model_type: str = "llama", layers: int = 4) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    config = AutoConfig.for_model(model_type, **sizes, **heads, **ids, initializer_range=0.3)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def talkative_target() -> PreTrainedModel:
    """Ends its turns early: a fifth of the characters count as end of turn."""
    target = tiny_target(layers=1)
    target.generation_config.eos_token_id = [3, *range(80, 100)]
    return target


def random_examples(count: int, hidden_size: int = 32) -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    examples = []
    for i in range(count):
        tokens = torch.randint(5, VOCABULARY, (14 + i % 5,), generator=generator)
        examples.append(Example(tokens, 4, torch.randn(len(tokens) - 4, hidden_size, generator=generator)))
    return examples


# The drafter's model


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral", "gemma2"])
def test_packed_canvases_equal_each_canvas_after_its_own_prefix(model_type: str) -> None:
    drafter = CanvasDrafter(tiny_target(model_type), [0, 1, 3]).eval()
    torch.nn.init.normal_(drafter.mask_embedding)
    tokens = torch.randint(5, VOCABULARY, (2, 12))
    anchors = torch.tensor([[0, 7, 3], [10, 5, 5]])
    with torch.no_grad():
        clean, masks = drafter(Canvases(tokens, anchors, canvas_length=4))
        for row in range(2):
            for canvas, anchor in enumerate(anchors[row].tolist()):
                prefix = drafter.body.get_input_embeddings()(tokens[row : row + 1, : anchor + 1])
                window = torch.cat([prefix, drafter.mask_embedding.expand(1, 3, -1)], dim=1)
                visible = torch.ones(anchor + 4, anchor + 4).tril().bool()
                visible[anchor + 1 :] = True
                mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
                alone = drafter.body(inputs_embeds=window, attention_mask=mask[None, None]).last_hidden_state[0]
                torch.testing.assert_close(clean[row, : anchor + 1], alone[: anchor + 1], atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(masks[row, canvas], alone[anchor + 1 :], atol=1e-5, rtol=1e-5)


def test_clean_rows_of_a_drafter_with_every_layer_are_the_target() -> None:
    target = tiny_target()
    drafter = CanvasDrafter(target, [0, 1, 2, 3])
    tokens = torch.randint(5, VOCABULARY, (1, 9))
    with torch.no_grad():
        clean, _ = drafter(Canvases(tokens, torch.tensor([[4]]), canvas_length=3))
        torch.testing.assert_close(drafter.logits(clean), target(tokens).logits, atol=1e-5, rtol=1e-5)


def test_drafter_refuses_targets_and_layers_it_cannot_copy() -> None:
    config = AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=32)
    with pytest.raises(ValueError, match="GPT2LMHeadModel"):
        CanvasDrafter(AutoModelForCausalLM.from_config(config), [0])
    with pytest.raises(ValueError, match=r"`layers` must be between 0 and 3, got \[0, 4\]"):
        CanvasDrafter(tiny_target(), [0, 4])


def test_reduced_vocabulary_keeps_frequent_ids_and_maps_the_rest_to_ignore() -> None:
    answers = [torch.tensor([9, 9, 9, 7, 7]), torch.tensor([5, 6, 7])]
    kept = frequent_tokens(answers, size=4, always=[3])
    assert kept.tolist() == [3, 5, 7, 9]  # 5 and 6 are equally frequent: the lower id stays
    assert frequent_tokens(answers, size=7, always=[3]).tolist() == [0, 1, 3, 5, 6, 7, 9]
    index = draft_index(kept, vocabulary=12)
    assert index[[3, 5, 7, 9]].tolist() == [0, 1, 2, 3]
    assert index[[0, 6, 11]].tolist() == [IGNORE] * 3
    target = tiny_target()
    drafter = CanvasDrafter(target, [0], kept)
    hidden = torch.randn(2, 32)
    torch.testing.assert_close(drafter.logits(hidden), target.lm_head(hidden)[:, kept])


# Losses


def test_losses_equal_hand_computed_numbers() -> None:
    assert position_weights(3, decay=2.0).tolist() == pytest.approx([1.0, math.exp(-0.5), math.exp(-1.0)])
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0], [5.0, 0.0]])
    labels = torch.tensor([1, 0, IGNORE])
    loss = weighted_cross_entropy(logits, labels, torch.tensor([3.0, 1.0, 9.0]))
    assert loss.item() == pytest.approx((3 * math.log(4 / 3) + math.log(2)) / 4)
    output, wanted = torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.tensor([[0.5, 0.0], [1.0, 1.0]])
    # Squares below 1 are halved, larger errors lose 0.5: rows 0.0625 and 0.75.
    assert weighted_regression(output, wanted, torch.tensor([1.0, 3.0])).item() == pytest.approx(
        (0.0625 + 3 * 0.75) / 4
    )


def test_cross_entropy_without_any_label_is_zero() -> None:
    loss = weighted_cross_entropy(torch.randn(2, 3), torch.tensor([IGNORE, IGNORE]), torch.ones(2))
    assert loss.item() == 0


def test_acceptance_counts_leading_matches_and_the_bonus_token() -> None:
    drafted = torch.tensor([[1, 2, 3], [1, 0, 3], [0, 2, 3], [1, 2, 0]])
    labels = torch.tensor([1, 2, 3]).expand(4, -1)
    assert leading_matches(drafted, labels).tolist() == [3, 1, 0, 2]
    figures = acceptance(drafted == labels)
    assert figures == {"mean_acceptance_length": 2.5, "accuracy_by_position": [0.75, 0.75, 0.75], "drafts": 4}


# Batches


def test_row_r_is_trained_on_token_r_plus_one() -> None:
    tokens = torch.tensor([10, 11, 12, 13, 14])
    example = Example(tokens, 2, torch.arange(3.0)[:, None])
    batch = collate([example], torch.tensor([[1, 3]]), 2, torch.arange(20))
    assert batch.labels[0].tolist() == [IGNORE, 12, 13, 14, IGNORE, IGNORE, IGNORE]
    assert batch.wanted[0, 1:4, 0].tolist() == [0.0, 1.0, 2.0]
    assert batch.labels.gather(1, batch.canvas_rows()).tolist() == [[12, 13, 14, IGNORE]]


def test_every_epoch_uses_every_example_once() -> None:
    lengths = [3, 9, 4, 8, 5, 7]
    epochs = [[batch_indices(lengths, 2, 0, step) for step in range(first, first + 3)] for first in (0, 3)]
    for epoch in epochs:
        assert sorted(sum(epoch, [])) == list(range(6))
        assert sorted(epoch) == [[0, 2], [3, 1], [4, 5]]  # neighbours in length
    assert epochs[0] != epochs[1]


def test_even_anchors_leave_room_for_whole_canvases() -> None:
    example = Example(torch.arange(20), 5, torch.zeros(15, 2))
    assert even_anchors([example], 3, canvas_length=5).tolist() == [[4, 9, 14]]


# Data


DATA = DataConfig(
    questions=10, question_tokens=16, answer_tokens=8, batch_size=4, shard_questions=8, top_k=VOCABULARY, seed=3
)


def test_killed_synthesis_continues_with_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, tokenizer = talkative_target(), tiny_tokenizer()
    manifest = synthesise(target, tokenizer, DATA, tmp_path / "straight", "tiny")
    assert len(manifest["shards"]) >= 2

    save = data_module.save_shard

    def killed_in_the_second(path: Path, examples: list[Example]) -> None:
        if path.name == "shard-00001.safetensors":
            raise KeyboardInterrupt
        save(path, examples)

    monkeypatch.setattr(data_module, "save_shard", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        synthesise(target, tokenizer, DATA, tmp_path / "resumed", "tiny")
    monkeypatch.setattr(data_module, "save_shard", save)
    assert synthesise(target, tokenizer, DATA, tmp_path / "resumed", "tiny") == manifest
    for shard in manifest["shards"]:
        straight, resumed = (tmp_path / folder / shard["file"] for folder in ("straight", "resumed"))
        one, other = load_file(straight), load_file(resumed)
        assert one["tokens"].tolist() == other["tokens"].tolist()
        torch.testing.assert_close(one["hidden"], other["hidden"])

    examples = [example for side in load_examples(tmp_path / "resumed") for example in side]
    prompts = {tuple(example.tokens[: example.prompt_length].tolist()) for example in examples}
    assert len(prompts) == len(examples) >= DATA.questions

    with pytest.raises(ValueError, match=r"`seed` must be 3 as in .*, got 4"):
        synthesise(target, tokenizer, replace(DATA, seed=4), tmp_path / "resumed", "tiny")


def test_answers_are_greedy_and_their_states_predict_them() -> None:
    target = tiny_target()
    source = Synthesiser(target, tiny_tokenizer(), DATA)
    questions = ["Hi", "A longer question?", "b"]
    for question, example in zip(questions, source.answers(questions), strict=True):
        prompt, answer = example.tokens[: example.prompt_length], example.tokens[example.prompt_length :]
        assert source.tokenizer.decode(prompt) == f"<user>{question}<end><assistant>"
        alone = target.generate(prompt[None], max_new_tokens=DATA.answer_tokens, do_sample=False)
        assert alone[0, len(prompt) :].tolist() == answer.tolist()
        assert target.lm_head(example.hidden.float()).argmax(-1).tolist() == answer.tolist()


def test_targets_without_a_chat_template_continue_plain_text() -> None:
    source = Synthesiser(tiny_target(layers=1), tiny_tokenizer(template=None), DATA)
    questions = source.questions(0)
    assert len(questions) == DATA.shard_questions
    assert source.prompt(questions[0]) == "<s>" + questions[0]


def test_a_prompt_is_always_on_the_same_side_of_the_split() -> None:
    tokens = [torch.cat([torch.tensor([1, i]), torch.randint(5, 9, (3,))]) for i in range(256) for _ in range(2)]
    sides = [Example(row, 2, torch.zeros(3, 1)).held_out for row in tokens]
    assert sides[0::2] == sides[1::2]
    assert 1 <= sum(sides[0::2]) <= 24


def test_loading_data_needs_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`data` must be a folder with a manifest.json"):
        load_examples(tmp_path / "nowhere")


# Training


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
    assert steps == [3, 6]

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
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert (config["num_hidden_layers"], config["vocab_size"]) == (2, VOCABULARY)
    assert config["failfast"].pop("target_fingerprint").startswith(f"{VOCABULARY}:")
    assert config["failfast"] == {
        "attention": "causal_canvas",
        "shift": 1,
        "mask_token_id": VOCABULARY,
        "noise": "mask",
        "shared_embeddings": True,
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
        ({"cross_entropy_fraction": 1.5}, r"`cross_entropy_fraction` must be in \(0, 1\], got 1.5"),
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
