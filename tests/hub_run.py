"""Run by the tests of exported repositories, in an interpreter that may lack hf_failfast: TARGET REPOSITORY...

Prints per repository whether the text is plain `generate`'s, what was accepted, and where the code came from.
"""

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM


def main(target: str, *repositories: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(target)
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
    if "--without" in sys.argv:
        sys.argv.remove("--without")
        sys.modules["hf_failfast"] = None  # an import of it fails, as where it is not installed
    main(*sys.argv[1:])
