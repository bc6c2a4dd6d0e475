"""`hf-failfast generate`, and `hf-failfast demo`: the pair that is at hand, with a comparison."""

import json
from typing import Annotated, Any

import typer

from .checks import check_models
from .interrupts import on_interrupt
from .options import (
    AsJson,
    Device,
    Drafter,
    Dtype,
    MaxNewTokens,
    Prepack,
    PromptLines,
    Repeats,
    Target,
    Temperature,
    check_device,
    given_prompts,
    torch_dtype,
    with_failfast_options,
)
from .startup import begin


@with_failfast_options()
def demo(
    max_new_tokens: MaxNewTokens = 64,
    repeats: Repeats = 1,
    dtype: Dtype = "bfloat16",
    prepack: Prepack = False,
    as_json: AsJson = False,
    *,
    options: dict[str, Any],
) -> None:
    """Four answers of SmolLM2-135M-Instruct with the bundled drafter, then the comparison with plain generate."""
    from ..pairs import DEMO_PROMPTS, is_smollm2_made, smollm2_folder

    first = "" if is_smollm2_made() else ", once 20 seconds to unpack the model"
    begin(f"The demo: four answers as they are written, then two minutes of timing at most{first}")
    with on_interrupt("the demo keeps nothing; start it again at any time"):
        pair = _load(None, None, dtype, "cpu", prepack)
        from .output.answers import compare, stream

        answers = stream(pair, DEMO_PROMPTS, options, max_new_tokens, as_json)
        typer.echo("\nTiming three methods on the same prompts, then checking them in float32 ...", err=True)
        compared = compare(pair, DEMO_PROMPTS, options, max_new_tokens, repeats, as_json)
    if as_json:
        print(json.dumps(answers | compared))
        return
    print("These are this machine's figures, of four prompts; `hf-failfast bench` times every method on eight.")
    print(f"Saved: SmolLM2-135M-Instruct in {smollm2_folder()}, for the next start; nothing else.")


@with_failfast_options()
def generate(
    target: Target = None,
    drafter: Drafter = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="What to answer; may be given several times.", show_default="standard input"
        ),
    ] = None,
    prompts: PromptLines = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampled answers.")] = 0,
    check: Annotated[
        bool, typer.Option("--check", help="Then compare with plain generate and prompt lookup, also in float32.")
    ] = False,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Timed runs per prompt and method of --check, which it implies.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    prepack: Prepack = False,
    as_json: AsJson = False,
    *,
    options: dict[str, Any],
) -> None:
    """Answer prompts with a target and a drafter. `--check` compares with plain generate, `bench` times."""
    from ..pairs import check_named_together, is_smollm2_made

    is_checked = check or repeats is not None
    if is_checked and temperature:
        raise typer.BadParameter("--check compares greedy answers; leave --temperature out.")
    check_named_together(target, drafter)
    check_models(target=target, drafter=drafter)
    asked = given_prompts(prompt, prompts)
    if target is None:
        is_smollm2_made()
    begin(f"Loading {target or 'SmolLM2-135M-Instruct'} and {'its drafter' if drafter is None else drafter}")
    with on_interrupt("an answer is not kept"):
        pair = _load(target, drafter, dtype, device, prepack)
        from .output.answers import compare, stream

        document = stream(pair, asked, options, max_new_tokens, as_json, not is_checked, temperature, seed)
        if is_checked:
            print(json.dumps(document | compare(pair, asked, options, max_new_tokens, repeats or 1, as_json)))


def _load(target: str | None, drafter: str | None, dtype: str, device: str, prepack: bool) -> Any:
    from ..engine.cpu.packed_weights import prepack as pack
    from ..pairs import load_pair
    from .output.progress import waiting

    check_device(device)
    with waiting("Loading the models"):
        pair = load_pair(target, drafter, torch_dtype(dtype), device)
    if prepack:
        pack(pair.target, pair.drafter)
    return pair
