"""`hf-failfast generate`, and `hf-failfast demo`: the same with the pair that is at hand."""

from typing import Annotated

import typer

from .options import (
    AsJson,
    ChunkLength,
    ConfidenceThreshold,
    Device,
    Dtype,
    LengthPolicy,
    MaxDraftLength,
    MaxNewTokens,
    Repeats,
    failfast_options,
    quiet,
    torch_dtype,
)


def demo(
    max_new_tokens: MaxNewTokens = 96,
    repeats: Repeats = 3,
    dtype: Dtype = "bfloat16",
    confidence_threshold: ConfidenceThreshold = None,
    chunk_length: ChunkLength = None,
    max_draft_length: MaxDraftLength = None,
    length_policy: LengthPolicy = None,
    as_json: AsJson = False,
) -> None:
    """SmolLM2-135M-Instruct with the bundled drafter: a few answers, then the comparison with plain generate."""
    from ..pair import load_pair
    from ..showcase import DEMO_PROMPTS, show

    quiet()
    pair = load_pair(None, None, torch_dtype(dtype), "cpu")
    options = failfast_options(
        confidence_threshold=confidence_threshold,
        chunk_length=chunk_length,
        max_draft_length=max_draft_length,
        length_policy=length_policy,
    )
    show(pair.target, pair.tokenizer, pair.drafter, DEMO_PROMPTS, options, max_new_tokens, repeats, as_json)


def generate(
    target: Annotated[str, typer.Option(help="Folder or Hub name of the causal LM.")],
    drafter: Annotated[str, typer.Option(help="Folder or Hub name of its diffusion drafter.")],
    prompt: Annotated[list[str], typer.Option(help="What to answer; may be given several times.")],
    max_new_tokens: MaxNewTokens = 128,
    repeats: Repeats = 3,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    confidence_threshold: ConfidenceThreshold = None,
    chunk_length: ChunkLength = None,
    max_draft_length: MaxDraftLength = None,
    length_policy: LengthPolicy = None,
    as_json: AsJson = False,
) -> None:
    """Answer prompts with any target and drafter, then compare with plain generate."""
    from ..pair import load_pair
    from ..showcase import show

    quiet()
    pair = load_pair(target, drafter, torch_dtype(dtype), device)
    options = failfast_options(
        confidence_threshold=confidence_threshold,
        chunk_length=chunk_length,
        max_draft_length=max_draft_length,
        length_policy=length_policy,
    )
    show(pair.target, pair.tokenizer, pair.drafter, prompt, options, max_new_tokens, repeats, as_json)
