"""What can be found wrong with a command before a model is loaded."""

from argparse import Namespace
from collections.abc import Collection
from dataclasses import fields
from difflib import get_close_matches
from inspect import signature
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from .jsonl_prompts import read_prompts
from .options import EvalOptions
from .paths import TASKS
from .quantisation import FLAGS

PROMPTS_TASK = "failfast_prompts"


def check_command(arguments: Namespace) -> None:
    """Raises ValueError on options of our model, and on our tasks, that would fail later.

    arguments: of lm-eval's `run` command; dictionaries where it parsed `name=value` lists.
    """
    given = vars(arguments)
    if given.get("model") == "hf_failfast":
        model_args = given.get("model_args") or {}
        check_names(model_args)
        EvalOptions.check(model_args)
    tasks = _our_tasks(given.get("tasks") or [])
    unsafe = sorted(name for name, config in tasks.items() if config.get("unsafe_code"))
    if unsafe and not given.get("confirm_run_unsafe_code"):
        raise ValueError(
            f"{unsafe} run code that the model wrote, in a subprocess with limits on time and memory but in no "
            "sandbox: add --confirm_run_unsafe_code if that is acceptable here."
        )
    check_prompts(tasks, (given.get("metadata") or {}).get("prompts"))


def check_names(model_args: Collection[str]) -> None:
    """Raises ValueError on a model argument that is all but one of ours or lm-eval's. Others pass: lm-eval hands them
    on to `from_pretrained`."""
    known = {field.name for field in fields(EvalOptions)} | set(signature(HFLM.__init__).parameters) | set(FLAGS)
    for name in model_args:
        close = [] if name in known else get_close_matches(name, known, n=1, cutoff=0.85)
        if close:
            raise ValueError(f"There is no model argument `{name}`; did you mean `{close[0]}`?")


def check_prompts(tasks: Collection[str], path: str | None) -> None:
    """Raises ValueError if the task that reads a file of prompts is among these and the file is none."""
    if PROMPTS_TASK in tasks:
        read_prompts(path)


def _our_tasks(names: list[str]) -> dict[str, dict[str, Any]]:
    """The configs of those named tasks that are ours, groups replaced by their members."""
    index = TaskManager(include_path=str(TASKS), include_defaults=False).task_index
    found: dict[str, dict[str, Any]] = {}
    pending = list(names)
    while pending:
        entry = index.get(pending.pop())
        if entry is None or entry.cfg is None:
            continue
        if "group" in entry.cfg:
            pending.extend(entry.cfg["task"])
        else:
            found[entry.name] = entry.cfg
    return found
