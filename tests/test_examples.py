"""The programs of `examples/`, each run on tiny checkpoints."""

import importlib.util
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
from conftest import REPOSITORY, saved_drafter, target
from transformers import GenerationMixin, PreTrainedTokenizerFast

EXAMPLES = REPOSITORY / "examples"
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}{{ '~' if m['role'] == 'assistant' else '' }}"
    "{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """(target folder with a tokenizer that has a chat template, drafter folder)."""
    folder = tmp_path_factory.mktemp("pair")
    target("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kept = json.loads((folder / "tokenizer_config.json").read_text())
    kept |= {"chat_template": TEMPLATE, "eos_token": "~"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    return str(folder), saved_drafter("canvas_shift", "llama")


def test_chat_keeps_the_text_and_reads_no_turn_twice(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = iter(["abc", "def", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(questions))
    example = load("chat")
    texts: list[str] = []
    cached: list[int] = []
    generate = GenerationMixin.generate

    def record(self, *arguments, **kwargs):
        if kwargs["custom_generate"] == "hf_failfast":  # else the call that the package itself makes
            texts.append(PreTrainedTokenizerFast.from_pretrained(pair[0]).decode(kwargs["input_ids"][0]))
            cached.append(kwargs["cache"].get_seq_length())
        return generate(self, *arguments, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", record)
    example.main(*pair, max_new_tokens=8)
    assert texts[0] == "[u]abc[a]"
    assert texts[1].startswith(texts[0])
    assert texts[1].endswith("[u]def[a]")
    assert cached == [0, len(texts[0]) + 8 - 1], "the second turn starts from the first one's cache"
    assert capsys.readouterr().out.count("tokens per round") == 2


def test_the_batch_file_continues_after_the_last_whole_line(pair: tuple[str, str], tmp_path: Path) -> None:
    example = load("batch_file")
    prompts = ["abc", "defg", "hi"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    example.main(tmp_path / "in.jsonl", tmp_path / "out.jsonl", *pair, max_new_tokens=6)
    whole = (tmp_path / "out.jsonl").read_text()
    answers = [json.loads(line) for line in whole.splitlines()]
    assert [answer["prompt"] for answer in answers] == prompts
    assert all(answer["speculation"]["emitted"] == 6 for answer in answers)
    (tmp_path / "out.jsonl").write_text(whole[: len(whole) // 2])
    example.main(tmp_path / "in.jsonl", tmp_path / "out.jsonl", *pair, max_new_tokens=6)
    again = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["answer"] for answer in again] == [answer["answer"] for answer in answers]


def test_the_batch_file_takes_plain_lines_and_names_what_is_missing(pair: tuple[str, str], tmp_path: Path) -> None:
    example = load("batch_file")
    (tmp_path / "in.txt").write_text("abc\n\ndefg\n")
    example.main(tmp_path / "in.txt", tmp_path / "out.jsonl", *pair, max_new_tokens=4)
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["prompt"] for answer in answers] == ["abc", "defg"]
    (tmp_path / "wrong.jsonl").write_text('{"prompt": "a"}\n{"question": "b"}\n')
    (tmp_path / "empty.txt").touch()
    for name, message in (
        ("no", "there is no file"),
        ("wrong.jsonl", "line 2 is no JSON"),
        ("empty.txt", "no prompt"),
    ):
        with pytest.raises(typer.BadParameter, match=message):
            example.main(tmp_path / name, tmp_path / "out.jsonl", *pair)


def test_chat_ends_with_its_input(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    load("chat").main(*pair)
    assert "Traceback" not in capsys.readouterr().err


def test_the_training_example_makes_and_measures_a_drafter(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "drafter"
    load("train_drafter").main(str(folder), output, minutes=0.01, questions=64)
    assert (output / "model.safetensors").exists()


def test_the_analysis_draws(pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "svg")
    monkeypatch.setattr(sys, "argv", ["analysis.py", *pair, str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "analysis.py"))
    assert (tmp_path / "analysis.svg").read_text().count("<svg") == 1


def test_every_example_is_named_and_run() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"chat", "batch_file", "train_drafter", "analysis"}
    assert all(f"({name}.py)" in (EXAMPLES / "README.md").read_text() for name in names)
