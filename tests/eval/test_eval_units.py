"""The parts of the suite that need no model."""

import json
import re
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")


from hf_failfast import FailFastConfig
from hf_failfast.eval import paths, preflight
from hf_failfast.eval.jsonl_prompts import read_prompts
from hf_failfast.eval.options import EvalOptions
from hf_failfast.eval.quantisation import take_quantisation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "`method` must be one of"),
        ({}, "`assistant` must name"),
        ({"method": "plain", "assistant": "x"}, "`assistant` is for the methods"),
        ({"method": "fixed", "assistant": "x", "confidence_threshold": 0.5}, "`confidence_threshold` is for"),
        ({"assistant": "x", "confidence_threshold": 1.5}, r"`confidence_threshold` must be a number in \[0, 1\]"),
        ({"assistant": "x", "chunk_length": 0}, "`chunk_length` must be an integer >= 1"),
        ({"assistant": "x", "exact": "yes"}, "`exact` must be True or False, but is 'yes'"),
        ({"method": "plain", "exact": True}, "`exact` is for the methods"),
        ({"assistant": "x", "target_latency_ms": 5.0}, "must be given together"),
        ({"assistant": "x", "target_latency_ms": -5.0, "drafter_latency_ms": 1.0}, "milliseconds > 0"),
        ({"assistant": "x", "compare_plain": "yes"}, "`compare_plain` must be True or False"),
        ({"method": "plain", "prepack": 1}, "`prepack` must be True or False, but is 1"),
        ({"method": "prompt_lookup", "runner": "cuda_graphs"}, "`runner` is for the methods"),
        ({"method": "plain", "runner": "cuda"}, "`runner` must be one of .* but is 'cuda'"),
        ({"method": "prompt_lookup", "num_assistant_tokens": 0}, "`num_assistant_tokens` must be an integer >= 1"),
    ],
)
def test_bad_options_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalOptions.check(arguments)


def test_quantisation_flags() -> None:
    arguments: dict[str, Any] = {"load_in_8bit": True, "attn_implementation": "eager"}
    config = take_quantisation(arguments)
    assert config is not None and config.load_in_8bit and config.llm_int8_threshold == 0.0
    assert arguments == {"attn_implementation": "eager"}
    with pytest.raises(ValueError, match="cannot both"):
        take_quantisation({"load_in_4bit": True, "load_in_8bit": True})
    with pytest.raises(ValueError, match="need `load_in_4bit=True`"):
        take_quantisation({"bnb_4bit_quant_type": "nf4"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\nnot json', "line 2 is not JSON"),
        ('["a"]', "line 1 must be a JSON object, but is a list"),
        ('\n{"words": "a"}', "line 2 has none of the keys"),
        ('{"turns": [1]}', "line 1: `turns` must be a text"),
        ("\n", "at least one prompt"),
    ],
)
def test_bad_prompt_files_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


@pytest.mark.parametrize("mark", ["", "\N{BYTE ORDER MARK}"])
@pytest.mark.parametrize("text", ["one\u2028two", "one\u2029two", "one\u0085two"])
def test_only_newlines_end_a_line(text: str, mark: str, tmp_path: Path) -> None:
    """Prompts with other separators stay whole, and a byte-order mark is no part of the first."""
    path = tmp_path / "prompts.jsonl"
    line = json.dumps({"prompt": text}, ensure_ascii=False)
    path.write_bytes(f"{mark}{line}\r\n\n{line}".encode())
    assert [row["prompt"] for row in read_prompts(path)] == [text, text]


def test_a_text_holds_a_prompt_a_line(tmp_path: Path) -> None:
    """As in every command that takes `--prompts FILE`; blank lines are none, and braces are a prompt's own."""
    path = tmp_path / "prompts.txt"
    path.write_bytes("\N{BYTE ORDER MARK}one\r\n\n{two}\u2028still two\n".encode())
    assert [row["prompt"] for row in read_prompts(path)] == ["one", "{two}\u2028still two"]
    path.write_text("\n")
    with pytest.raises(ValueError, match="at least one prompt"):
        read_prompts(path)


def command(**arguments: Any) -> Namespace:
    return Namespace(**{"model": "hf_failfast", "model_args": {"pretrained": "x", "assistant": "y"}} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_args": {"pretrained": "x"}, "tasks": ["failfast_gsm8k"]}, "`assistant` must name"),
        ({"tasks": ["failfast_humaneval"]}, "--confirm_run_unsafe_code"),
        ({"tasks": ["failfast_offline"]}, "--confirm_run_unsafe_code"),
        ({"tasks": ["failfast_prompts"]}, "`prompts` must name a JSONL file"),
        ({"tasks": ["failfast_prompts"], "metadata": {"prompts": "nowhere.jsonl"}}, "none at 'nowhere.jsonl'"),
    ],
)
def test_bad_commands_end_before_a_model_is_loaded(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preflight.check_command(command(**arguments))


def test_good_commands_pass() -> None:
    preflight.check_command(command(tasks=["failfast_offline"], confirm_run_unsafe_code=True))
    preflight.check_command(command(model="hf", model_args={"pretrained": "x"}, tasks=["failfast_gsm8k", "hellaswag"]))


def test_a_task_without_generation_is_refused() -> None:
    from hf_failfast.eval.task import SpeedTask

    with pytest.raises(ValueError, match="`output_type` must be generate_until"):
        SpeedTask({"task": "choices", "output_type": "multiple_choice"})


def test_stock_tasks_are_inherited() -> None:
    """Every paper task that names a stock task gets its data from it; the stock files are read, not fetched."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    from hf_failfast.eval.task import inherited

    for path in sorted(paths.TASKS.glob("*.yaml")):
        if "inherits" in yaml.load(path.read_text(), Loader=yaml.BaseLoader):
            config = inherited(load_yaml(path))
            assert config["dataset_path"] and config["task"] == path.stem and "inherits" not in config


def test_the_package_does_not_need_its_evaluation() -> None:
    """Only `hf_failfast.eval` imports lm-eval and evaluate; only commands and experiments import it."""
    package = paths.TASKS.parent / "hf_failfast"
    for path in package.rglob("*.py"):
        part = path.relative_to(package).parts[0]
        lines = [line for line in path.read_text().splitlines() if line.lstrip().startswith(("import ", "from "))]
        forbidden = {"eval": "nothing", "cli": r"lm_eval|evaluate", "experiments": r"lm_eval|evaluate"}
        pattern = forbidden.get(part, r"lm_eval|evaluate|eval")
        assert not [line for line in lines if re.search(rf"\b({pattern})\b", line)], path


def test_every_option_of_failfast_is_one_of_the_model() -> None:
    assert set(FailFastConfig.field_names()) <= {field.name for field in fields(EvalOptions)}


def test_a_misspelt_model_argument_is_named() -> None:
    """Before the target is loaded; arguments of `from_pretrained` pass."""
    preflight.check_names(
        {"pretrained": "a", "compare_plain": True, "load_in_4bit": True, "attn_implementation": "eager"}
    )
    for wrong, right in (("compare_plane", "compare_plain"), ("assistent", "assistant"), ("pretraned", "pretrained")):
        with pytest.raises(ValueError, match=f"There is no model argument `{wrong}`; did you mean `{right}`"):
            preflight.check_names({wrong: 1})
