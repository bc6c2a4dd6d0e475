"""`hf-failfast bench`."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    AsJson,
    Device,
    Drafter,
    Dtype,
    MaxNewTokens,
    Prepack,
    Repeats,
    Target,
    quiet,
    torch_dtype,
    with_failfast_options,
)

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
        typer.Option(help="What to answer; may be given several times.", show_default="eight of several kinds"),
    ] = None,
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
    from ..engine.cpu.packed_weights import prepack as pack
    from ..experiments.bench import PROMPTS, encode_prompts, is_without_weights, load, measure
    from ..experiments.replay import load as load_record
    from ..experiments.replay import record as make_record
    from ..experiments.replay import replayed, save
    from ..measure.methods import all_methods, compiled_methods, load_assistant, plain_forms, title
    from ..measure.provenance import provenance, setting
    from ..measure.timing import Prompts
    from .output.bench import show
    from .output.progress import progress_bar, waiting

    if plots is not None:
        from ..experiments.plots import require_matplotlib

        require_matplotlib()
    texts = None if replay is None else load_record(replay)
    if target is not None and replay is None and is_without_weights(target):
        raise ValueError(f"{target} has no weights; timing it needs a recorded acceptance, `--replay FILE`.")
    quiet()
    with waiting("Loading the models"):
        pair = load(target, drafter, torch_dtype(dtype), device)
    asked = encode_prompts(pair.tokenizer, prompt or PROMPTS, pair.target)
    if record is not None:
        with waiting("Recording"):
            save(record, make_record(pair.target, pair.drafter, asked, max_new_tokens, RECORDED_CHUNK), pair.names)
        print(json.dumps({"record": str(record)} | pair.names) if as_json else record)
        return
    if texts is not None:
        with waiting("Answering plainly"):
            pair = pair._replace(drafter=replayed(pair.target, pair.drafter, texts, asked, max_new_tokens))
    loaded = None if assistant is None else load_assistant(assistant, pair.target)
    if prepack:
        pack(pair.target, pair.drafter, *([] if loaded is None else [loaded]))
    prompts = [Prompts.greedy(ids, max_new_tokens) for ids in asked]
    compilable = plain_forms(pair.target.device)
    compilation: dict[str, dict[str, Any]] = {}
    if compiled or (compiled is None and pair.target.device.type == "cuda"):
        with waiting("Compiling"):
            found, compilation = compiled_methods(pair.target, prompts, loaded)
        compilable = found + compilable
    methods = all_methods(pair.drafter, options, loaded, compilable)
    with progress_bar() as on_progress:
        measured = measure(pair.target, pair.drafter, methods, prompts, repeats, partial(on_progress, "Timing"))
    facts = {
        "assistant": assistant,
        "replay": None if replay is None else replay.name,
        "options": options,
        "compiled": compilation.pop(title("plain", is_compiled=True), None),
        "compiled_hf": compilation,
        "max_new_tokens": max_new_tokens,
        "repeats": repeats,
    }
    document = measured | pair.names | facts | setting(pair.target) | provenance(pair.target.device)
    show(document, plots, as_json)
