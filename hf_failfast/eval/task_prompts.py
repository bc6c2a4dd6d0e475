"""Prompts of any lm-eval generation task, as lm-eval itself would ask them."""

import io
import logging
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any

import torch
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerBase

from ..measure.timing import Prompts
from . import task as _  # noqa: F401  (the class that our tasks name)
from .model import stop_strings
from .paths import TASKS


def task_prompts(
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int,
    max_new_tokens: int,
    device: torch.device | str,
    prompts_file: str | None = None,
    skip: int = 0,
    temperature: float = 0.0,
) -> list[Prompts]:
    """The first `limit` prompts of each task after the first `skip`, one per batch, chat template applied if there
    is one. They ask for greedy answers, or with a temperature for sampled ones.

    names: tasks and groups, ours or stock ones; `prompts_file` is `failfast_prompts`' file. Raises ValueError on an
    unknown name, a task that generates nothing, and one without a prompt after those skipped.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    arguments = {"pad_token_id": tokenizer.pad_token_id} | sampling
    prompts: list[Prompts] = []
    for task in _tasks(names, prompts_file):
        requests = _requests(task, tokenizer, skip + limit)[skip:]
        if not requests:
            raise ValueError(f"The task {task.config.task!r} has no prompt after its first {skip}.")
        encoded = [_encode(request, tokenizer, max_new_tokens, device) for request in requests]
        prompts += [replace(prompt, generation_kwargs=arguments) for prompt in encoded]
    return prompts


def _tasks(names: Sequence[str], prompts_file: str | None) -> Iterable[Task]:
    ours = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"prompts": prompts_file})
    is_ours = set(names) <= set(ours.all_tasks)  # reading lm-eval's 14,000 stock files takes seconds
    manager = ours if is_ours else TaskManager(include_path=str(TASKS), metadata={"prompts": prompts_file})
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown:
        raise ValueError(f"Unknown tasks {unknown}; `hf-failfast-eval ls tasks` lists them.")
    return manager.load(list(names))["tasks"].values()


def _requests(task: Task, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Any]:
    if task.OUTPUT_TYPE != "generate_until":
        raise ValueError(f"The task {task.config.task!r} generates nothing.")
    has_template = tokenizer.chat_template is not None
    with redirect_stderr(io.StringIO()):  # a progress bar per task
        task.build_all_requests(
            limit=count,
            rank=0,
            world_size=1,
            apply_chat_template=has_template,
            chat_template=_chat_template(tokenizer) if has_template else None,
            tokenizer_name="",
        )
    return task.instances[:count]


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> Any:
    def apply(messages: Any, add_generation_prompt: bool = True) -> Any:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    return apply


def _encode(
    request: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, device: torch.device | str
) -> Prompts:
    text, arguments = request.args
    encoded = tokenizer(text, return_tensors="pt", add_special_tokens=tokenizer.chat_template is None)
    ids = encoded["input_ids"].to(device)
    until = arguments.get("until") or []
    stop = [until] if isinstance(until, str) else until
    return Prompts(ids, torch.ones_like(ids), ids.shape[1] + max_new_tokens, stop_strings(tokenizer, stop), {})
