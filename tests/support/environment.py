"""The environment of a test run, set before torch, transformers and Triton are imported."""

import atexit
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRITON_INTERPRET"] = "1"  # the tests run on the CPU

# Deletes with the run what the tests, the libraries and their child processes write here; pytest keeps its own.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
_scratch = tempfile.TemporaryDirectory(prefix="hf-failfast-tests-", ignore_cleanup_errors=True)
atexit.register(_scratch.cleanup)
os.environ["TMPDIR"] = tempfile.tempdir = _scratch.name
os.environ.setdefault("HF_MODULES_CACHE", tempfile.mkdtemp(prefix="hf-modules-"))
