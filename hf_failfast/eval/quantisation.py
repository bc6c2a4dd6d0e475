"""lm-eval's bitsandbytes flags for transformers 5, which takes them in a config object only."""

from typing import Any

import torch
from transformers import BitsAndBytesConfig

FLAGS = ("load_in_4bit", "load_in_8bit")
# With its default of 6.0 the outlier rows of LLM.int8 depend on all rows of a forward, so that verifying several
# tokens at once gives other logits than decoding them one by one; 0.0 treats every row alike.
LOSSLESS_INT8_THRESHOLD = 0.0


def take_quantisation(arguments: dict[str, Any]) -> BitsAndBytesConfig | None:
    """The config that lm-eval's flags ask for, or None; the flags are removed from `arguments`.

    load_in_4bit, load_in_8bit, and every option whose name starts with `bnb_4bit_` or `llm_int8_`.
    Raises ValueError on both flags at once and on options without their flag.
    """
    flags = {name: value for name in FLAGS if (value := arguments.pop(name, False))}
    names = [name for name in arguments if name.startswith(("bnb_4bit_", "llm_int8_"))]
    options = {name: arguments.pop(name) for name in names}
    if len(flags) > 1:
        raise ValueError("`load_in_4bit` and `load_in_8bit` cannot both be True.")
    if not flags:
        if options:
            raise ValueError(f"{sorted(options)} need `load_in_4bit=True` or `load_in_8bit=True`.")
        return None
    if "load_in_8bit" in flags:
        options.setdefault("llm_int8_threshold", LOSSLESS_INT8_THRESHOLD)
    if "bnb_4bit_compute_dtype" in options:
        options["bnb_4bit_compute_dtype"] = getattr(torch, str(options["bnb_4bit_compute_dtype"]))
    return BitsAndBytesConfig(**flags, **options)
