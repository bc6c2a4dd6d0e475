"""How answers are judged, and the sets of questions that are made here."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from hf_failfast.eval import made_tasks as offline
from hf_failfast.eval import scoring
from hf_failfast.eval.metric_modules import load_module
from hf_failfast.eval.subprocesses import runs_through


def test_modules_load_from_a_folder_without_lm_eval() -> None:
    code = (
        "import sys, evaluate; from hf_failfast.eval.paths import EVALUATE_MODULES as E;"
        "m = evaluate.load(str(E / 'paired_speedup'), keep_in_memory=True);"
        "print(m.compute(predictions=[(0.5, 20)], references=[(1.0, 20)])['speedup'], 'lm_eval' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["2.0", "False"]


def test_pass_at_k_estimates_and_refuses() -> None:
    module = load_module("pass_at_k")
    candidates = [["a = 1", "a = 0"]]
    scores = module.compute(predictions=candidates, references=["assert a"], k=[1, 2], confirm_run_unsafe_code=True)
    assert scores == {"pass@1": 0.5, "pass@2": 1.0}
    with pytest.raises(ValueError, match="confirm_run_unsafe_code"):
        module.compute(predictions=candidates, references=["assert a"])


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("x = 1", True),
        ("raise SystemExit(0)", False),
        ("import os; os._exit(0)", False),
        ("assert False", False),
        ("while True: pass", False),
        ("x = bytearray(2**31)", False),
        ("open('big', 'wb').write(bytes(2**21))", False),
    ],
)
def test_programs_run_within_limits(program: str, expected: bool) -> None:
    """Only a program that reaches its end passes; one that leaves early or breaks a limit does not."""
    assert runs_through(program, timeout_seconds=2.0 if "while" in program else 20.0) is expected


def test_rouge_of_known_texts() -> None:
    scores = load_module("rouge").compute(predictions=["the cat sat"], references=["the cat stood"])
    assert scores == pytest.approx({"rouge1": 2 / 3, "rouge2": 1 / 2, "rougeL": 2 / 3})


@pytest.mark.parametrize(
    ("response", "doc", "expected"),
    [
        ("so \\boxed{1,234}.", {"answer": "some words #### 1234"}, 1.0),
        ("\\boxed{3} or \\boxed{\\frac{1}{2}}", {"answer": "\\frac12"}, 1.0),
        ("\\boxed{(B)}", {"answer": "B"}, 1.0),
        ("\\boxed{\\text{B}}", {"answer": "(B)"}, 1.0),
        ("the answer is 4", {"answer": "4"}, 0.0),
        ("\\boxed{5}", {"Answer": 4}, 0.0),
    ],
)
def test_boxed_answers(response: str, doc: dict[str, Any], expected: float) -> None:
    assert scoring.score_boxed(doc, [response]) == {"exact_match": expected}


def test_humaneval_answers_as_block_and_as_continuation() -> None:
    """The wheel's own solutions pass in both forms, after the prompt's imports; a wrong one does not."""
    doc = offline.humaneval()["test"][0]
    function = doc["prompt"].split("from typing import List")[1] + doc["canonical_solution"]
    whole = f"Here it is:\n```python\n{function}```\nDone."
    for response, expected in ((whole, 1.0), (doc["canonical_solution"], 1.0), ("    return True", 0.0)):
        assert scoring.score_humaneval(doc, [response]) == {"pass@1": expected}


def test_json_fields() -> None:
    doc = {"answer": json.dumps({"a": 1, "b": "x"})}
    assert scoring.score_fields(doc, ['{bad} then {"a": 1, "b": "y"}']) == {"field_accuracy": 0.5, "exact_match": 0.0}
    assert scoring.score_fields(doc, ["none"]) == {"field_accuracy": 0.0, "exact_match": 0.0}


@pytest.mark.parametrize("name", ["arithmetic", "extraction", "summaries"])
def test_made_sets_are_the_same_everywhere(name: str) -> None:
    rows = getattr(offline, name)()["test"]
    assert rows.to_list() == getattr(offline, name)()["test"].to_list()
    assert len({row["question"] for row in rows}) == len(rows) == offline.SIZE


def test_made_answers_follow_from_their_questions() -> None:
    """Recomputed from the numbers in the question, by the question's last sentence."""
    for row in offline.arithmetic()["test"]:
        numbers = [int(number) for number in re.findall(r"\d+", row["question"])]
        if "left" in row["question"]:
            expected = numbers[0] * numbers[1] - numbers[2]
        elif "coins" in row["question"]:
            expected = (numbers[0] * numbers[1] - numbers[2]) * numbers[3]
        else:
            expected = numbers[0] // numbers[1] + numbers[2]
        assert row["answer"] == str(expected)
    for row in offline.extraction()["test"]:
        order = json.loads(row["answer"])
        assert (
            f"Order {order['order']}: {order['customer']} ordered {order['quantity']} {order['item']}"
            in row["question"]
        )
