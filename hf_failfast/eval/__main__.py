"""lm-eval's command with the model `hf_failfast` and this project's tasks: `hf-failfast-eval`."""

import sys

import torch
from lm_eval._cli import HarnessCLI
from lm_eval.utils import setup_logging

from . import task  # noqa: F401  (registers the model)
from .paths import TASKS
from .preflight import check_command


def main() -> None:
    """All of lm-eval's flags and sub-commands. Bad options end with one line on stderr, before a model is loaded."""
    setup_logging()
    harness = HarnessCLI()
    arguments = harness.parse_args()
    if arguments.command == "run":
        given = getattr(arguments, "include_path", None)
        arguments.include_path = [str(TASKS)] if given is None else [str(TASKS), given]
        try:
            check_command(arguments)
        except ValueError as error:
            sys.exit(f"hf-failfast-eval: {error}")
    harness.execute(arguments)
    if torch.distributed.is_initialized():  # an open gloo group aborts the process as it ends
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
