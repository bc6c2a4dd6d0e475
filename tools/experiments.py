"""The experiments of results/experiments, with SmolLM2 and its drafter on a CPU: all of them, or those named.

`python -m tools.experiments tau confidence`; each takes less than ten minutes on two quiet cores.
"""

import subprocess
import sys

from hf_failfast.experiments import catalogue


def main(chosen: list[str]) -> None:
    for name in chosen or catalogue.names():
        command = (sys.executable, "-m", "hf_failfast.cli", "experiment", name, "--output", "results/experiments")
        subprocess.run([*command, *catalogue.load(name).stored.split()], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
