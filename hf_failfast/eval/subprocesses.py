"""Programs that nobody has read, run in a process with limits. No security boundary: they can read the file system."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile

# Runs argv[2] as a program, with the address space limited to argv[1] bytes and no files larger than a megabyte.
_LAUNCHER = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20,) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
runpy.run_path(sys.argv[2], run_name="__main__")
"""


def runs_through(program: str, timeout_seconds: float = 10.0, memory_mib: int = 1024) -> bool:
    """Whether a Python program reaches its end: no exception, no early exit, within the limits.

    It runs in an empty temporary folder, without input, without this process's environment, and all processes of its
    group are killed afterwards. POSIX only.
    """
    proof = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "program.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"{program}\nprint({proof!r})\n")
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _LAUNCHER, str(memory_mib * 2**20), path],
            cwd=folder,
            env={"PATH": os.defpath, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _kill_group(process)
    return process.returncode == 0 and output.rstrip().endswith(proof.encode())


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
