"""Where a stored number comes from: command, commit, versions, machine."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..engine.cpu.packed_weights import is_prepacked

PACKAGES = ("torch", "transformers", "accelerate", "lm-eval")


def provenance(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What has to stand beside a measurement, ready for JSON.

    command: this process's, with its program's bare name. commit: of the source tree the package was imported from,
    with `-dirty` after it where tracked files differ from it; None outside of a git checkout.
    """
    return {
        "command": _command(),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | _versions(),
        "hardware": _hardware(torch.device(device)),
    }


def setting(target: PreTrainedModel) -> dict[str, Any]:
    """What a speed depends on beside the models, ready for JSON."""
    return {
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": str(target.device),
        "processor": platform.machine(),
        "prepacked": is_prepacked(target),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def _command() -> str:
    if sys.orig_argv[1:2] == ["-m"]:
        return shlex.join(["python", *sys.orig_argv[1:]])
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hardware(device: torch.device) -> dict[str, Any]:
    cpu = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "load": round(os.getloadavg()[0], 1),  # more than the threads: something else ran, and no time here is right
    }
    return cpu | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (ValueError, OSError, AttributeError):  # no sysconf, or without these names
        return None


def _commit() -> str | None:
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
