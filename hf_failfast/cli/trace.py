"""`hf-failfast trace`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .checks import check_models, check_parents
from .interrupts import on_interrupt
from .options import (
    AsJson,
    Device,
    Drafter,
    Dtype,
    MaxNewTokens,
    Target,
    check_device,
    torch_dtype,
    with_failfast_options,
    with_old_name,
)
from .startup import begin


@with_old_name("--out", "output")
@with_failfast_options()
def trace(
    output: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("trace.html"),
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="What to answer.")
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
    from ..pairs import check_named_together

    check_named_together(target, drafter)
    check_models(target=target, drafter=drafter)
    check_parents([output])
    begin(f"Answering a prompt, to show how each token came to be in {output}")
    with on_interrupt("no page was written"):
        _write(output, prompt, target, drafter, max_new_tokens, dtype, device, as_json, options)


def _write(
    output: Path,
    prompt: str,
    target: str | None,
    drafter: str | None,
    max_new_tokens: int,
    dtype: str,
    device: str,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    from dataclasses import asdict

    from ..measure.provenance import provenance
    from ..measure.timing import WARM_UP_TOKENS
    from ..measure.tracing import trace as trace_generation
    from ..pairs import encode_prompt, load_pair
    from .output.progress import waiting
    from .output.trace_page import trace_page

    check_device(device)
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
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    print(json.dumps({"prompt": prompt, **pair.names, **facts, **traced.as_dict()}) if as_json else output)
