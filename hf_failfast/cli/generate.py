"""`hf-failfast generate`, and `hf-failfast demo`: the same with the pair that is at hand."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .options import AsJson, Device, Dtype, MaxNewTokens, Prepack, Repeats, quiet, torch_dtype, with_failfast_options


@with_failfast_options()
def demo(
    max_new_tokens: MaxNewTokens = 96,
    repeats: Repeats = 3,
    dtype: Dtype = "bfloat16",
    prepack: Prepack = False,
    as_json: AsJson = False,
    *,
    options: dict[str, Any],
) -> None:
    """SmolLM2-135M-Instruct with the bundled drafter: a few answers, then the comparison with plain generate."""
    from ..pairs import DEMO_PROMPTS

    _show((None, None, dtype, "cpu"), DEMO_PROMPTS, options, max_new_tokens, repeats, prepack, as_json)


@with_failfast_options()
def generate(
    target: Annotated[str, typer.Option(help="Folder or Hub name of the causal LM.")],
    drafter: Annotated[str, typer.Option(help="Folder or Hub name of its diffusion drafter.")],
    prompt: Annotated[list[str], typer.Option(help="What to answer; may be given several times.")],
    max_new_tokens: MaxNewTokens = 128,
    repeats: Repeats = 3,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    prepack: Prepack = False,
    as_json: AsJson = False,
    *,
    options: dict[str, Any],
) -> None:
    """Answer prompts with any target and drafter, then compare with plain generate."""
    _show((target, drafter, dtype, device), prompt, options, max_new_tokens, repeats, prepack, as_json)


def _show(
    models: tuple[str | None, str | None, str, str],  # target, drafter, dtype, device
    prompts: Sequence[str],
    options: dict[str, Any],
    max_new_tokens: int,
    repeats: int,
    prepack: bool,
    as_json: bool,
) -> None:
    from ..engine.cpu.packed_weights import prepack as pack
    from ..pairs import load_pair
    from .output.answers import show
    from .output.progress import waiting

    quiet()
    target, drafter, dtype, device = models
    with waiting("Loading the models"):
        pair = load_pair(target, drafter, torch_dtype(dtype), device)
    if prepack:
        pack(pair.target, pair.drafter)
    show(pair.target, pair.tokenizer, pair.drafter, prompts, options, max_new_tokens, repeats, as_json)
