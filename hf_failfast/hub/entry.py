"""Speculative decoding with a diffusion drafter: `custom_generate="<this repository>", trust_remote_code=True`.

An exported repository holds this file as `custom_generate/generate.py`, and the modules of hf_failfast that it needs
beside it. Where hf_failfast itself is installed in the same version, patch releases aside, that one is run.
"""

import functools
import importlib
import sys
from typing import Any

from ..drafters import execution_device, load_drafter
from ..drafters.checkpoints.reading import CONFIGS, find_file
from ..generate import generate as decode
from ..version import __version__

# Arguments of `generate` that say how a repository is fetched: for its code, and for its drafter too.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


def generate(model: Any, inputs: Any = None, *, assistant_model: Any = None, **kwargs: Any) -> Any:
    """Every argument of `model.generate`, and those of `hf_failfast.generate`.

    assistant_model: a drafter, or its folder or Hub id; by default the drafter of this repository.
    """
    hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
    if assistant_model is None:
        # transformers hands over all of `generate`'s arguments but the repository's name: that is in its frame only.
        assistant_model = _own_drafter(sys._getframe(1).f_locals.get("custom_generate"), model, hub)
    return decode(model, inputs, assistant_model=assistant_model, **kwargs)


def _own_drafter(repository: Any, model: Any, hub: dict[str, Any]) -> Any:
    """The drafter whose weights lie in the repository, loaded once per dtype and device."""
    if not isinstance(repository, str) or not any(find_file(repository, name, hub) for name in CONFIGS):
        raise ValueError(
            "This repository holds no drafter: pass `assistant_model`, the folder or Hub id of a diffusion drafter."
        )
    return _load_once(repository, dtype=model.dtype, device_map=execution_device(model), **hub)


try:
    installed = importlib.import_module("hf_failfast")
except ImportError:
    pass
else:
    if installed.__version__.rpartition(".")[0] == __version__.rpartition(".")[0]:
        decode, load_drafter = installed.generate, installed.load_drafter

_load_once = functools.lru_cache(maxsize=4)(load_drafter)
