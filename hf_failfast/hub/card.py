"""The README of an exported repository, under the headings that the Hub asks of `custom_generate` repositories."""

from huggingface_hub import ModelCard, ModelCardData

from ..compatibility import OLDEST, UNTESTED
from ..config import FailFastConfig
from ..drafters.checkpoints.reading import Checkpoint
from ..version import __version__
from .layout import DRAFTER_CARD

REPOSITORY = "<this repository>"

# transformers checks the lower bounds before it runs the code; a version after the upper one warns.
# safetensors and huggingface_hub are requirements of transformers.
REQUIREMENTS = ("torch>=2.11", f"transformers>={OLDEST},<{UNTESTED}")


def repository_card(checkpoint: Checkpoint | None, drafter_card: ModelCard | None, target: str | None) -> str:
    """README.md with front matter.

    checkpoint, drafter_card: of the drafter in the repository, if there is one. target: overrides its config's.
    """
    target = target or (checkpoint.section.target if checkpoint else None)
    card_data = {"license": "apache-2.0"} if checkpoint is None else drafter_card.data if drafter_card else {}
    data = ModelCardData(
        license=card_data.get("license"),  # of weights, it is their author's to say
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=target,
        tags=["custom_generate", "speculative-decoding", "diffusion-lm", "hf_failfast"],
    )
    return f"---\n{data.to_yaml()}\n---\n{_body(checkpoint, drafter_card is not None, target)}"


def _body(checkpoint: Checkpoint | None, has_card: bool, target: str | None) -> str:
    named = f"`{target}`" if target else "any target with the drafter's vocabulary"
    if checkpoint is None:
        drafter = "A drafter of your choice is passed as `assistant_model`."
        default, argument = "", '\n    assistant_model="<folder or Hub id of a diffusion drafter>",'
    else:
        card = f" ([its card]({DRAFTER_CARD}))" if has_card else ""
        drafter = f"This repository holds a drafter for {named}{card}."
        default, argument = "; by default the one in this repository", ""
    config = FailFastConfig().with_options(checkpoint.section.options if checkpoint else {})
    return f"""# Speculative decoding with a diffusion drafter

## Description

A small diffusion language model fills a chunk of masked positions in one pass; while it is sure of every token the
draft grows, at the first unsure chunk it stops, and the target verifies the draft in one pass of its own (FailFast,
[arXiv 2512.20573](https://arxiv.org/abs/2512.20573)). The text is the target's own: under greedy decoding identical
to plain `generate` token by token in float32, and in bfloat16 up to near ties, where a forward of several rows rounds
differently from a forward of one; under `do_sample=True` distributed as plain sampling.

{drafter} The code is hf_failfast {__version__} (Apache-2.0). Nothing but torch and transformers has to be
installed; where hf_failfast is installed in the same version, the installed one runs. Weights are read from
safetensors files only, and no code of a checkpoint is executed.

## Base model

{named[0].upper() + named[1:]}.

## Model compatibility

Decoder-only causal language models of transformers (Llama, Qwen, Gemma, Mistral, GPT-2 and others) whose
tokenizer is the drafter's. Requirements: {", ".join(REQUIREMENTS)}.

## Additional Arguments

- `assistant_model`: the drafter, as a folder or Hub id{default}.
- `confidence_threshold` ({config.confidence_threshold}): tau; the draft grows while every confidence of its newest
  chunk reaches it.
- `chunk_length` ({config.chunk_length}): N, the tokens that a pass of the drafter adds.
- `max_draft_length` ({config.max_draft_length}): N_max, the longest draft.

## Output Type changes

None by default. With `return_dict_in_generate=True` the output has one more field, `speculation`: rounds, drafter
passes, acceptance and times.

## Example usage

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

target = "{target or "<your target>"}"
model = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(target)
inputs = tokenizer("The capital of France is", return_tensors="pt")
output = model.generate(
    **inputs,
    custom_generate="{REPOSITORY}",{argument}
    trust_remote_code=True,
    max_new_tokens=64,
)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```
"""
