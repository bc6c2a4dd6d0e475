"""Versions of transformers that the package cannot work with are refused by name, before anything else fails."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY

from hf_failfast.compatibility import check_transformers


@pytest.mark.parametrize("version", ["4.57.1", "5.16.9", "6.0.0", "6.1.0.dev0"])
def test_the_range_is_named(version):
    with pytest.raises(ImportError, match=f"transformers >= 5.17, < 6, but {version} is installed"):
        check_transformers(version)


@pytest.mark.parametrize("version", ["5.17.0", "5.23.0", "5.24.0.dev0", "5.99.1+local"])
def test_versions_in_range(version):
    check_transformers(version)


def test_the_import_names_it_although_much_else_is_missing_there(tmp_path):
    (tmp_path / "transformers.py").write_text('__version__ = "4.57.1"\n')
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(REPOSITORY)!r}]; import hf_failfast",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stderr.splitlines()[-1].startswith("ImportError: hf_failfast works with transformers >= 5.17, < 6")
