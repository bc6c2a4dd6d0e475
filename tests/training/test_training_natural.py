"""Natural prompts: words out of WordNet's files, templates that differ, conversations, targets without a template."""

from dataclasses import replace
from pathlib import Path

import pytest
from training_support import talkative_target, tiny_target, tiny_tokenizer
from typer.testing import CliRunner

from hf_failfast.cli.app import app
from hf_failfast.training.config import DataConfig
from hf_failfast.training.data import words as words_module
from hf_failfast.training.data.answers import TURN, Writer
from hf_failfast.training.data.natural import BEGINNINGS, FIELD, KINDS, NaturalPrompts
from hf_failfast.training.data.synthesis import load_examples, synthesise
from hf_failfast.training.data.words import Words, read_words, wordnet_folder

LICENCE = "  1 This text stands for a licence, which the files begin with.  \n"
FILES = {
    "cntlist.rev": "apple%1:13:00:: 1 9\npeel%2:30:00:: 1 8\nripe%3:00:00:: 1 7\nunripe%5:00:00:x:00 1 7\n"
    "oslo%1:15:00:: 1 3\nrare_thing%1:03:00:: 1 1\nquickly%4:02:00:: 1 9\n",
    "data.noun": '00000001 13 n 02 apple 0 pome_fruit 0 000 | a fruit; "the apple fell far from its tree"  \n'
    "00000002 15 n 01 Oslo 0 000 | the capital of Norway  \n"
    "00000003 03 n 01 rare_thing 0 000 | what nobody asks about  \n",
    "data.verb": '00000004 30 v 01 peel 0 000 01 + 08 00 | take the skin off; "she peels every potato twice!"  \n',
    "data.adj": "00000005 00 a 01 ripe 0 000 | ready to be eaten  \n",
    "data.adv": "00000006 02 r 01 quickly 0 000 | with speed  \n",
}


@pytest.fixture
def wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for name, lines in FILES.items():
        (folder / name).write_text((LICENCE if name.startswith("data") else "") + lines)
    monkeypatch.setenv("WNSEARCHDIR", str(folder))
    return folder


def test_words_are_common_ones_with_their_definitions(wordnet: Path) -> None:
    words = read_words(wordnet_folder())
    assert (words.nouns, words.verbs, words.adjectives) == (["apple", "Oslo"], ["peel"], ["ripe"])
    assert words.sentences == ["The apple fell far from its tree.", "She peels every potato twice!"]
    assert words.definitions == [("apple", "a fruit"), ("Oslo", "the capital of Norway")]
    assert any(name == "sqrt" for name, _ in words.functions)


def test_without_words_the_error_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    monkeypatch.setattr(words_module, "FOLDERS", (str(tmp_path / "nowhere"),))
    with pytest.raises(FileNotFoundError, match="get it with: apt-get install wordnet-base"):
        wordnet_folder()
    monkeypatch.setenv("WNSEARCHDIR", "/elsewhere")
    with pytest.raises(FileNotFoundError, match=r"WNSEARCHDIR \(now /elsewhere\)"):
        wordnet_folder()


def test_every_template_can_be_filled(wordnet: Path) -> None:
    words = read_words(wordnet)
    prompts = NaturalPrompts(words, DataConfig(shard_questions=8), continues=False)
    for templates in [BEGINNINGS, *(templates for templates, _ in KINDS)]:
        for template in templates:
            generator = prompts.generator(0)
            filled = prompts.filled(template, generator)
            assert filled and FIELD.search(filled) is None, template


def test_shards_are_different_and_always_the_same(wordnet: Path) -> None:
    many = Words(*([f"{kind}{i}" for i in range(50)] for kind in ("noun", "verb", "adj", "A sentence ")), *PAIRS)
    config = DataConfig(shard_questions=200, seed=3)
    first, second = (NaturalPrompts(many, config, continues=False) for _ in range(2))
    assert first.shard(1) == second.shard(1) != first.shard(2)
    assert len(set(first.shard(0))) == 200
    assert NaturalPrompts(many, replace(config, seed=4), continues=False).shard(1) != first.shard(1)
    chats = [text for text in first.shard(0) if TURN in text]
    assert chats and all(len(text.split(TURN)) == 3 for text in chats)


PAIRS = ([(f"thing{i}", f"what {i} is") for i in range(50)], [(f"function{i}", f"Does {i} things") for i in range(50)])


def test_articles_fit_their_words() -> None:
    words = Words(["apple"], ["eat"], ["ripe"], ["A egg."], *PAIRS)
    prompts = NaturalPrompts(words, DataConfig(), continues=False)
    assert prompts.filled("A {noun} and a {adjective} {noun}.", prompts.generator(0)) == "An apple and a ripe apple."
    assert prompts.filled("a {noun}: {sentence}", prompts.generator(0)) == "an apple: A egg."  # texts stay as they are


@pytest.mark.usefixtures("wordnet")
@pytest.mark.parametrize("template", [True, False])
def test_natural_prompts_are_answered(template: bool, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer() if template else tiny_tokenizer(template=None)
    config = DataConfig(source="natural", questions=24, shard_questions=24, answer_tokens=8, prompt_tokens=600)
    manifest = synthesise(talkative_target(), tokenizer, config, tmp_path / "data", "tiny")
    assert manifest["settings"]["source"].startswith("natural prompts")
    examples = [example for side in load_examples(tmp_path / "data") for example in side]
    texts = [tokenizer.decode(example.tokens[: example.prompt_length]) for example in examples]
    assert len(set(texts)) == len(texts) >= 24
    assert all(text.startswith("<user>") == template for text in texts)
    if not template:  # no question that waits for an answer, and no conversation
        assert all(TURN not in text and text.startswith("<s>") for text in texts)


def test_turns_alternate_between_user_and_assistant() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}[{{ turn['role'] }}]{{ turn['content'] }}{% endfor %}>"
    writer = Writer(tiny_target(layers=1), tokenizer, DataConfig())
    assert writer.prompt(TURN.join(["Hi", "Hello", "Why?"])) == "[user]Hi[assistant]Hello[user]Why?>"
    assert writer.prompt("Hi") == "[user]Hi>"


def test_prompts_and_source_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="`prompts` takes the place of `source`, got 'a.txt' beside 'natural'"):
        DataConfig(prompts="a.txt", source="natural")
    assert DataConfig(prompts="a.txt").file == DataConfig(source="a.txt").file == "a.txt"
    assert DataConfig(source="self-written").file is DataConfig().file is None
    with pytest.raises(ValueError, match="`records` 'texts' needs a `source`"):
        DataConfig(source="natural", records="texts")


def test_the_command_refuses_natural_prompts_without_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In one line, before a model is loaded: the target's weights are missing too."""
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    tiny_target(layers=1).config.save_pretrained(tmp_path / "target")
    command = [
        "train",
        "--target",
        str(tmp_path / "target"),
        "--output",
        str(tmp_path / "drafter"),
        "--source",
        "natural",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "apt-get install wordnet-base" in result.output
    assert not (tmp_path / "drafter").exists()
