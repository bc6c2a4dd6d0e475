"""The test run cleans up after itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

USE = """
import subprocess, sys, tempfile
import conftest
conftest.saved_drafter("canvas")
subprocess.run([sys.executable, "-c", "import tempfile; tempfile.mkdtemp(prefix='of-a-child-')"], check=True)
assert conftest.Path(tempfile.gettempdir()).is_relative_to(sys.argv[1])
"""


@pytest.mark.exhaustive
def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path) -> None:
    """A process that uses the tests' checkpoints, and a child of it, leave nothing in the temporary folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "HF_MODULES"))}
    subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)],
        env=environment | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY / "tests" / "support")},
        cwd=REPOSITORY / "tests",
        check=True,
        timeout=300,
    )
    assert list(tmp_path.iterdir()) == []
