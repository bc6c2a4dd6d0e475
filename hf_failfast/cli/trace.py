"""`hf-failfast trace`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    AsJson,
    Device,
    Drafter,
    Dtype,
    MaxNewTokens,
    Target,
    quiet,
    torch_dtype,
    with_failfast_options,
)


@with_failfast_options()
def trace(
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("trace.html"),
    prompt: Annotated[
        str, typer.Option(help="What to answer.")
    ] = "Write a Python function that checks whether a number is prime.",
    target: Target = None,
    drafter: Drafter = None,
    max_new_tokens: MaxNewTokens = 160,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    as_json: AsJson = False,
    *,
    options: dict[str, Any],
) -> None:
    """Answer a prompt and write a page that shows how each token came to be."""
    from dataclasses import asdict

    from ..measure.provenance import provenance
    from ..measure.timing import WARM_UP_TOKENS
    from ..measure.tracing import trace as trace_generation
    from ..pairs import encode_prompt, load_pair
    from .output.progress import waiting
    from .output.trace_page import trace_page

    quiet()
    with waiting("Loading the models"):
        pair = load_pair(target, drafter, torch_dtype(dtype), device)
    config = pair.drafter.config.with_options(options)
    input_ids = encode_prompt(pair.tokenizer, prompt).to(pair.target.device)
    with waiting("Answering"):
        for tokens in (WARM_UP_TOKENS, max_new_tokens):
            traced = trace_generation(
                pair.target,
                input_ids,
                pair.drafter,
                failfast_config=config,
                max_new_tokens=tokens,
                do_sample=False,
            )
    facts = asdict(config) | {"dtype": str(pair.target.dtype)} | provenance(pair.target.device)
    page = trace_page(traced, pair.tokenizer, prompt=prompt, names=pair.names, facts=facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    print(json.dumps({"prompt": prompt, **pair.names, **facts, **traced.as_dict()}) if as_json else out)
