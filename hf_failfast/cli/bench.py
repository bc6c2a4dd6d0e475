"""`hf-failfast bench`."""

import json
from functools import partial
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
    Prepack,
    PromptLines,
    Repeats,
    Target,
    check_device,
    given_prompts,
    torch_dtype,
    with_failfast_options,
)
from .startup import begin

RECORDED_CHUNK = 16


@with_failfast_options("length_policy")
def bench(
    target: Target = None,
    drafter: Drafter = None,
    assistant: Annotated[
        str | None,
        typer.Option(
            help="Autoregressive draft model of transformers' assisted generation; a drafter with causal canvas and "
            "shift 1 is read as one."
        ),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compiled/--no-compiled",
            help="transformers' own methods under torch.compile, too (from 5.24 on also the assisted ones); compiling "
            "takes a minute or so.",
            show_default="on CUDA",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="What to answer; may be given several times.", show_default="eight of several kinds"
        ),
    ] = None,
    prompts: PromptLines = None,
    max_new_tokens: MaxNewTokens = 96,
    repeats: Repeats = 3,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    prepack: Prepack = False,
    replay: Annotated[
        Path | None,
        typer.Option(help="JSON file of --record: real compute, recorded acceptance; a config.json is model enough."),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="JSON file to write the pair's acceptance to; nothing is timed.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for the figures, SVG.")] = None,
    as_json: AsJson = False,
    *,
    options: dict[str, Any],
) -> None:
    """Time every method on the same prompts, and show where the time goes. The last line is one JSON document."""
    texts = None if prompt is None and prompts is None else given_prompts(prompt, prompts)
    _check(target, drafter, assistant, replay, record, plots)
    begin("Recording what the drafter drafts" if record else "Timing every method on the same prompts, for minutes")
    from ..experiments.bench import PROMPTS, encode_prompts, load
    from ..experiments.replay import load as load_record
    from ..experiments.replay import replayed
    from .output.bench import show
    from .output.progress import waiting

    check_device(device)
    recorded = None if replay is None else load_record(replay)
    with on_interrupt("nothing is kept of what is not finished"):
        with waiting("Loading the models"):
            pair = load(target, drafter, torch_dtype(dtype), device)
        asked = encode_prompts(pair.tokenizer, texts or PROMPTS, pair.target)
        if record is not None:
            _record(record, pair, asked, max_new_tokens, as_json)
            return
        if recorded is not None:
            with waiting("Answering plainly"):
                pair = pair._replace(drafter=replayed(pair.target, pair.drafter, recorded, asked, max_new_tokens))
        facts = {
            "assistant": assistant,
            "replay": None if replay is None else replay.name,
            "options": options,
            "max_new_tokens": max_new_tokens,
            "repeats": repeats,
        }
        document = _timed(pair, asked, facts, compiled, prepack)
    show(document, plots, as_json)


def _check(
    target: str | None,
    drafter: str | None,
    assistant: str | None,
    replay: Path | None,
    record: Path | None,
    plots: Path | None,
) -> None:
    """Raises what can be known before torch is imported."""
    from ..pairs import check_named_together, is_smollm2_made, is_without_weights

    if plots is not None:
        from ..experiments.plots import require_matplotlib

        require_matplotlib()
    if replay is not None and not replay.is_file():
        raise typer.BadParameter(f"there is no file {str(replay)!r}.", param_hint="--replay")
    check_named_together(target, drafter)
    if target is not None and replay is None and is_without_weights(target):
        raise ValueError(f"{target} has no weights; timing it needs a recorded acceptance, `--replay FILE`.")
    check_models(target=target, drafter=drafter, assistant=assistant)
    check_parents([record, plots])
    if target is None:
        is_smollm2_made()


def _record(path: Path, pair: Any, asked: list[Any], max_new_tokens: int, as_json: bool) -> None:
    from ..experiments.replay import record, save
    from .output.progress import waiting

    with waiting("Recording"):
        save(path, record(pair.target, pair.drafter, asked, max_new_tokens, RECORDED_CHUNK), pair.names)
    print(json.dumps({"record": str(path)} | pair.names) if as_json else path)


def _timed(pair: Any, asked: list[Any], facts: dict[str, Any], compiled: bool | None, prepack: bool) -> dict[str, Any]:
    """The document of the benchmark."""
    from ..engine.cpu.packed_weights import prepack as pack
    from ..experiments.bench import measure, measure_exact
    from ..measure.methods import all_methods, compiled_methods, load_assistant, plain_forms, title
    from ..measure.provenance import provenance, setting
    from ..measure.timing import Prompts
    from .output.progress import progress_bar, waiting

    name = facts["assistant"]
    assistant = None if name is None else load_assistant(name, pair.target)
    if prepack:
        pack(pair.target, pair.drafter, *([] if assistant is None else [assistant]))
    prompts = [Prompts.greedy(ids, facts["max_new_tokens"]) for ids in asked]
    compilable = plain_forms(pair.target.device)
    compilation: dict[str, dict[str, Any]] = {}
    if compiled or (compiled is None and pair.target.device.type == "cuda"):
        with waiting("Compiling"):
            found, compilation = compiled_methods(pair.target, prompts, assistant)
        compilable = found + compilable
    options = {name: value for name, value in facts["options"].items() if name != "exact"}
    methods = all_methods(pair.drafter, options, assistant, compilable)
    with progress_bar() as on_progress:
        timing = partial(on_progress, "Timing")
        measured = measure(pair.target, pair.drafter, methods, prompts, facts["repeats"], timing)
        measured["exact"] = None
        if facts["options"].get("exact"):
            timing = partial(on_progress, "Timing exact forwards")
            measured["exact"] = measure_exact(pair.target, pair.drafter, options, prompts, facts["repeats"], timing)
    facts = facts | {"compiled": compilation.pop(title("plain", is_compiled=True), None), "compiled_hf": compilation}
    return measured | pair.names | facts | setting(pair.target) | provenance(pair.target.device)
