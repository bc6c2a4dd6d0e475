"""Synthesis of training data: what a shard holds, resuming, sources that users name, and bad records."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_support import VOCABULARY, talkative_target, tiny_target, tiny_tokenizer

from hf_failfast.training import data as data_module
from hf_failfast.training.config import DataConfig
from hf_failfast.training.data import load_examples, synthesise
from hf_failfast.training.examples import Example
from hf_failfast.training.prompts import OwnQuestions
from hf_failfast.training.writer import Writer

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
    source = Writer(target, tiny_tokenizer(), DATA)
    questions = ["Hi", "A longer question?", "b"]
    for question, example in zip(questions, source.examples(questions, seed=0), strict=True):
        prompt, answer = example.tokens[: example.prompt_length], example.tokens[example.prompt_length :]
        assert source.tokenizer.decode(prompt) == f"<user>{question}<end><assistant>"
        alone = target.generate(prompt[None], max_new_tokens=DATA.answer_tokens, do_sample=False)
        assert alone[0, len(prompt) :].tolist() == answer.tolist()
        assert target.lm_head(example.hidden.float()).argmax(-1).tolist() == answer.tolist()


def test_targets_without_a_chat_template_continue_plain_text() -> None:
    writer = Writer(tiny_target(layers=1), tiny_tokenizer(template=None), DATA)
    questions = OwnQuestions(writer, DATA).shard(0)
    assert len(questions) == DATA.shard_questions
    assert writer.prompt(questions[0]) == "<s>" + questions[0]


def test_a_prompt_is_always_on_the_same_side_of_the_split() -> None:
    tokens = [torch.cat([torch.tensor([1, i]), torch.randint(5, 9, (3,))]) for i in range(256) for _ in range(2)]
    sides = [Example(row, 2, torch.zeros(3, 1)).held_out for row in tokens]
    assert sides[0::2] == sides[1::2]
    assert 1 <= sum(sides[0::2]) <= 24


def test_loading_data_needs_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`data` must be a folder with a manifest.json"):
        load_examples(tmp_path / "nowhere")
