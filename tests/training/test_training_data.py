"""Synthesis of training data: what a shard holds, resuming, sources that users name, and bad records."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_support import VOCABULARY, talkative_target, tiny_target, tiny_tokenizer

from hf_failfast.training.config import DataConfig
from hf_failfast.training.data import synthesis as data_module
from hf_failfast.training.data.answers import Writer
from hf_failfast.training.data.prompts import OwnQuestions, read_records
from hf_failfast.training.data.shards import Example
from hf_failfast.training.data.synthesis import load_examples, synthesise

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


# Sources that the user names


LONG = "x" * 40
RECORDS = {
    "prompts": ["Who?", "", "Where?", "   ", LONG, "Who?", "When?", "How?", "Why?"],
    "texts": ["A text to learn from.", "", "z", LONG, "Another text, of another length."],
}


def write_source(folder: Path, kind: str, texts: list[str]) -> Path:
    path = folder / f"source.{kind}"
    lines = texts if kind == "txt" else [json.dumps({"question": text}) for text in texts]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_prompts_of_a_file_are_answered(kind: str, tmp_path: Path) -> None:
    source = str(write_source(tmp_path, kind, RECORDS["prompts"]))
    config = replace(DATA, source=source, field="question", prompt_tokens=30, questions=100, shard_questions=4)
    manifest = synthesise(tiny_target(), tiny_tokenizer(), config, tmp_path / "data", "tiny")
    assert manifest["left_out"] == {"empty": 2, "too_long": 1, "repeated": 1}
    assert [shard["questions"] for shard in manifest["shards"]] == [2, 2, 1]
    assert manifest["settings"]["source"] == source.rsplit("/", 1)[-1]  # not where it lay
    examples = [example for side in load_examples(tmp_path / "data") for example in side]
    found = {tiny_tokenizer().decode(example.tokens[: example.prompt_length]) for example in examples}
    assert found == {f"<user>{text}<end><assistant>" for text in ("Who?", "Where?", "When?", "How?", "Why?")}


def test_texts_are_learned_as_they_are_and_cut(tmp_path: Path) -> None:
    target = tiny_target()
    config = replace(DATA, source=str(write_source(tmp_path, "txt", RECORDS["texts"])), records="texts")
    config = replace(config, answer_tokens=24)
    manifest = synthesise(target, tiny_tokenizer(), config, tmp_path / "data", "tiny")
    assert manifest["left_out"] == {"empty": 1, "too_long": 0, "repeated": 0}
    examples = [example for side in load_examples(tmp_path / "data") for example in side]
    texts = [tiny_tokenizer().decode(example.tokens) for example in examples]
    assert sorted(texts) == sorted("<s>" + text[:23] for text in RECORDS["texts"] if text)
    states = target(examples[0].tokens[None], output_hidden_states=True).hidden_states[-1][0]
    wanted = states[examples[0].prompt_length - 1 : -1]
    torch.testing.assert_close(examples[0].hidden.float(), wanted, atol=0.05, rtol=0.05)


def test_sampled_answers_stand_beside_the_greedy_one_and_train_only(tmp_path: Path) -> None:
    config = replace(DATA, questions=40, shard_questions=64, sampled_answers=2, store_states=False)
    synthesise(talkative_target(), tiny_tokenizer(), config, tmp_path, "tiny")
    training, held_out = load_examples(tmp_path)
    assert not any(example.sampled for example in held_out) and held_out
    assert sum(example.sampled for example in training) == 2 * sum(not example.sampled for example in training)
    assert all(example.hidden is None for example in training)
    by_prompt: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for example in training:
        tokens = tuple(example.tokens.tolist())
        by_prompt.setdefault(tokens[: example.prompt_length], set()).add(tokens[example.prompt_length :])
    assert sum(len(answers) for answers in by_prompt.values()) > 2 * len(by_prompt)  # they differ


# Texts as json.dumps(..., ensure_ascii=False) writes them: valid JSON, though Unicode and Python end lines there.
SEPARATED = ["one\u2028two", "one\u2029two", "one\u0085two", "one\x7ftwo", "one two"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\N{BYTE ORDER MARK}"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_only_newlines_end_a_line(kind: str, mark: str, newline: str, tmp_path: Path) -> None:
    """Texts with other separators stay whole, a byte-order mark is no text, and blank JSON lines are skipped."""
    texts = SEPARATED + ([] if kind == "jsonl" else ["a\x0bb\x0cc\x1cd\x1de\x1ef", ""])
    lines = [json.dumps({"question": text}, ensure_ascii=False) for text in texts] + [" "]
    path = tmp_path / f"source.{kind}"
    path.write_bytes((mark + "".join(line + newline for line in (texts if kind == "txt" else lines))).encode())
    assert read_records(replace(DATA, source=str(path), field="question")) == texts


def test_a_file_without_lines(tmp_path: Path) -> None:
    """An empty file has no texts, and a last line needs no newline."""
    path = tmp_path / "source.txt"
    for content, texts in (("", []), ("a", ["a"]), ("\n", [""])):
        path.write_text(content)
        assert read_records(replace(DATA, source=str(path))) == texts


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ('{"question": 1}', {"field": "question"}, r"`field` must name a text of every record, but .*:1 has no text"),
        ('{"a": "b"}', {}, r"no text 'prompt': \['a'\]"),
        ("{", {}, r"`source` must hold one JSON value a line, but .*:1 is none"),
        ('""', {}, r"`source` must hold a usable record, but .* has none: \{'empty': 1"),
    ],
)
def test_bad_sources_are_named(content: str, changes: dict[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "source.jsonl"
    path.write_text(content + "\n")
    config = replace(DATA, source=str(path), **changes)
    with pytest.raises(ValueError, match=message):
        synthesise(tiny_target(), tiny_tokenizer(), config, tmp_path / "data", "tiny")


def test_sources_are_mixed_in_turn(tmp_path: Path) -> None:
    """Every text of every source once, also where one has ended; a run that was stopped goes on with the same."""
    files = {}
    for name, count in (("a", 3), ("b", 10)):
        files[name] = tmp_path / f"{name}.txt"
        files[name].write_text("".join(f"{name}{number}\n" for number in range(count)))
    config = replace(DATA, source=tuple(map(str, files.values())), shard_questions=4, questions=99)
    target, tokenizer = talkative_target(), tiny_tokenizer()
    manifest = synthesise(target, tokenizer, config, tmp_path / "data", "tiny")
    assert manifest["settings"]["source"] == "a.txt, b.txt"
    assert [shard["questions"] for shard in manifest["shards"]] == [3, 4, 4, 2]
    examples = [example for side in load_examples(tmp_path / "data") for example in side]
    texts = [tokenizer.decode(example.tokens[: example.prompt_length]) for example in examples]
    found = sorted(text.removeprefix("<user>").partition("<")[0] for text in texts)
    assert found == sorted([f"a{number}" for number in range(3)] + [f"b{number}" for number in range(10)])

    some = replace(config, questions=5)
    assert len(synthesise(target, tokenizer, some, tmp_path / "resumed", "tiny")["shards"]) == 2
    assert synthesise(target, tokenizer, config, tmp_path / "resumed", "tiny") == manifest
    with pytest.raises(ValueError, match=r"`source` must be 'a.txt, b.txt' as in .*, got 'a.txt'"):
        synthesise(target, tokenizer, replace(config, source=str(files["a"])), tmp_path / "data", "tiny")


def test_a_file_is_mixed_with_the_targets_own_questions(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    config = replace(DATA, source=("self-written", str(path)), questions=30)
    manifest = synthesise(talkative_target(), tiny_tokenizer(), config, tmp_path / "data", "tiny")
    counts = [shard["questions"] for shard in manifest["shards"]]
    assert counts[1] == 2 and sum(counts) >= 30


def test_a_mixture_that_only_repeats_itself_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("same\n")
    monkeypatch.setattr(OwnQuestions, "shard", lambda self, number: ["same"])
    config = replace(DATA, source=("self-written", str(path)))
    with pytest.raises(ValueError, match="`questions` must be at most what the target can vary, got 10: after 1 "):
        synthesise(talkative_target(), tiny_tokenizer(), config, tmp_path / "data", "tiny")


@pytest.mark.parametrize("names", [(), ("natural",), ("natural", "natural")])
def test_a_mixture_is_of_different_sources(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="`source` must name one source or several different ones"):
        replace(DATA, source=names)


def test_texts_need_a_source() -> None:
    with pytest.raises(ValueError, match="`records` 'texts' needs a `source`"):
        replace(DATA, records="texts")
