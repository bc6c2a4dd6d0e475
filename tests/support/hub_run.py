"""Run by the tests of exported repositories, in an interpreter that may lack hf_failfast: TARGET REPOSITORY...

Prints per repository whether the text is plain `generate`'s, the accepted tokens, and the module of the code. With
`--without`, hf_failfast cannot be imported and transformers finds no accelerate.
"""

import functools
import json
import sys

import torch
import transformers
from transformers.utils import import_utils


def hide() -> None:
    """Imitates an environment with torch and transformers only."""
    sys.modules["hf_failfast"] = None
    import_utils.is_accelerate_available.cache_clear()
    find = import_utils._is_package_available

    @functools.wraps(find)
    def is_available(name: str, *args, **kwargs):
        return find("not_there" if name == "accelerate" else name, *args, **kwargs)

    import_utils._is_package_available = is_available


def main(target: str, *repositories: str) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(target)
    arguments = {"inputs": torch.tensor([[3, 4, 5]]), "max_new_tokens": 24, "do_sample": False}
    plain = model.generate(**arguments)
    found = {}
    for name in repositories:
        output = model.generate(
            **arguments, custom_generate=name, trust_remote_code=True, return_dict_in_generate=True
        )
        found[name] = {
            "identical": torch.equal(output.sequences, plain),
            "accepted": output.speculation.accepted,
            "module": type(output.speculation).__module__,
        }
    print(json.dumps({"transformers": transformers.__version__, "repositories": found}))


if __name__ == "__main__":
    if sys.argv[-1] == "--without":
        sys.argv.pop()
        hide()
    main(*sys.argv[1:])
