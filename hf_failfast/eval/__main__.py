"""lm-eval's command with the model `hf_failfast` and this project's tasks: `hf-failfast-eval`."""

import sys
from argparse import Namespace
from importlib.util import find_spec


def main() -> None:
    """All of lm-eval's flags and sub-commands. Bad options end with one line on stderr, before a model is loaded."""
    if find_spec("lm_eval") is None:
        how = 'pip install "hf_failfast[eval]", or in a checkout pip install -e ".[eval]"'
        sys.exit(f"hf-failfast-eval needs lm-eval: {how}")
    from lm_eval._cli import HarnessCLI

    harness = HarnessCLI()
    arguments = harness.parse_args()
    if arguments.command == "run":
        _prepare(arguments)
    harness.execute(arguments)
    if "torch" in sys.modules:
        _leave_process_group()


def _prepare(arguments: Namespace) -> None:
    """Checks a run's options, then imports the model that they may name."""
    print("Reading the tasks and checking the options ...", file=sys.stderr)
    from lm_eval.utils import setup_logging

    from ..generate import register
    from . import task  # noqa: F401  (registers the model)
    from .paths import TASKS
    from .preflight import check_command

    setup_logging()
    register()
    given = getattr(arguments, "include_path", None)
    arguments.include_path = [str(TASKS)] if given is None else [str(TASKS), given]
    try:
        check_command(arguments)
    except ValueError as error:
        sys.exit(f"hf-failfast-eval: {error}")


def _leave_process_group() -> None:
    """An open gloo group aborts the process as it ends."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
