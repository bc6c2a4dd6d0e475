"""Unsupported versions of transformers are refused by name before anything else fails."""

import subprocess
import sys
import warnings

import pytest
from conftest import REPOSITORY, drafter, prompt, target
from transformers import DynamicCache

import hf_failfast
from hf_failfast.compatibility import CACHE, CACHE_NAMES, check_transformers, with_cache_name


@pytest.mark.parametrize("version", ["4.57.1", "5.16.9", "6.0.0", "6.1.0.dev0"])
def test_the_range_is_named(version):
    with pytest.raises(ImportError, match=f"transformers >= 5.17, < 6, but {version} is installed"):
        check_transformers(version)


@pytest.mark.parametrize("version", ["5.17.0", "5.23.0", "5.24.0.dev0", "5.99.1+local"])
@pytest.mark.filterwarnings("ignore:transformers .* is newer")
def test_versions_in_range(version):
    check_transformers(version)


@pytest.mark.parametrize(("version", "warns"), [("5.24.3", False), ("5.25.0.dev0", True), ("5.30.1", True)])
def test_an_untested_version_warns_by_name(version, warns, recwarn):
    """One warning names the installed version and the tested range; a tested version gives none."""
    check_transformers(version)
    assert [str(each.message).startswith(f"transformers {version} is newer") for each in recwarn] == [True] * warns


def test_either_name_of_the_cache_is_taken_and_both_are_refused():
    """The cache reaches the loop under the installed version's name."""
    assert with_cache_name({"cache": 1, "use_cache": True}) == with_cache_name(
        {"past_key_values": 1, "use_cache": True}
    )
    assert with_cache_name({"cache": 1})[CACHE] == 1
    with pytest.raises(ValueError, match="`cache` and `past_key_values` are two names"):
        with_cache_name({"cache": 1, "past_key_values": 1})


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_drafted_call_takes_either_name(name):
    """Both names continue the same text on every version, without transformers' warning about the old one."""
    model, cache = target("llama"), DynamicCache(config=target("llama").config)
    options = {"assistant_model": drafter("canvas"), "max_new_tokens": 8, "do_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        ids = hf_failfast.generate(model, prompt(9), **options, **{name: cache})
    assert cache.get_seq_length() == ids.shape[1] - 1
    assert ids.tolist() == model.generate(prompt(9), max_new_tokens=8, do_sample=False).tolist()


def test_the_import_names_it_although_much_else_is_missing_there(tmp_path):
    (tmp_path / "transformers.py").write_text('__version__ = "4.57.1"\n')
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(REPOSITORY)!r}]; import hf_failfast",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stderr.splitlines()[-1].startswith("ImportError: hf_failfast works with transformers >= 5.17, < 6")
