"""How the tasks tell a right answer: `process_results` of their YAML files."""

import json
import re
from collections.abc import Sequence
from typing import Any

from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed

from .metric_modules import load_module

Doc = dict[str, Any]
_CHOICE = re.compile(r"(?:\\text)?\{?\(?([A-J])\)?\}?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def score_boxed(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """exact_match of the last \\boxed{} with the answer, by lm-eval's rules for MATH; no box is a wrong answer.

    GSM8K's answer stands after its `####`; a multiple-choice answer is its letter.
    """
    boxed = last_boxed_only_string(results[0])
    gold = str(doc["answer"] if "answer" in doc else doc["Answer"]).rsplit("####", 1)[-1]
    if boxed is None:
        return {"exact_match": 0.0}
    return {"exact_match": float(is_equiv(_plain(remove_boxed(boxed)), _plain(gold)))}


def _plain(answer: str) -> str:
    answer = _THOUSANDS.sub("", answer.strip().removesuffix("."))
    choice = _CHOICE.fullmatch(answer)
    return choice.group(1) if choice else answer


def score_humaneval(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """pass@1 of one HumanEval answer. lm-eval asks for the user's confirmation before it comes to this."""
    program = humaneval_program(results[0], doc["prompt"], doc["entry_point"])
    return _pass_at_1(program, f"{doc['test']}\ncheck({doc['entry_point']})")


def score_mbpp(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """pass@1 of one MBPP answer under its three tests."""
    return _pass_at_1(code_of(results[0]), "\n".join([doc["test_setup_code"], *doc["test_list"]]))


def _pass_at_1(program: str, test: str) -> dict[str, float]:
    return load_module("pass_at_k").compute(predictions=[[program]], references=[test], confirm_run_unsafe_code=True)


def code_of(response: str) -> str:
    """The first fenced block of an answer, closed or not; the whole answer if it has none."""
    fenced = _FENCED.search(response)
    return fenced.group(1) if fenced else response


def humaneval_program(response: str, prompt: str, entry_point: str) -> str:
    """The program an answer writes: a whole function after the prompt's imports, or the prompt's continuation."""
    code = code_of(response)
    signature = f"def {entry_point}("
    return prompt.split(signature)[0] + code if signature in code else prompt + code


def score_fields(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Share of the answer's JSON fields that the first JSON object of the response has right; exact_match if all."""
    gold = json.loads(doc["answer"])
    found = _first_object(results[0])
    share = sum(found.get(key) == value for key, value in gold.items()) / len(gold)
    return {"field_accuracy": share, "exact_match": float(share == 1)}


def _first_object(text: str) -> dict[str, Any]:
    decoder = json.JSONDecoder()
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            found, _ = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            continue
        return found
    return {}


def score_summary(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """ROUGE F-measures of a summary; the reference is `answer`, or `highlights` in CNN/DailyMail."""
    reference = doc["answer"] if "answer" in doc else doc["highlights"]
    return load_module("rouge").compute(predictions=[results[0]], references=[reference])


def score_nothing(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """For prompts without a right answer: the length of the response, which lm-eval needs to log the sample."""
    return {"response_characters": float(len(results[0]))}
