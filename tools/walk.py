"""`python -m tools.walk`: every command as a new user types it; how soon it speaks, and what it says of mistakes.

Prints a line per step, and ends with status 1 if one failed: the first output came later than `--seconds`, the exit
status was another one, the sentence was missing, or torch was imported where it is not needed. The models are tiny
random ones, made here; nothing is fetched.
"""

import os
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

MINUTES = 5.0  # after which a command is ended
COMMANDS = ("hf_failfast.cli", "hf_failfast.eval")


@dataclass(frozen=True)
class Step:
    """A command line and what it has to do.

    words: of `hf-failfast`; of `hf-failfast-eval` where `module` says so. sentence: a part of what is printed.
    needs_torch: whether it may be imported. text: standard input.
    """

    words: tuple[str, ...]
    status: int = 0
    sentence: str = ""
    needs_torch: bool = False
    module: str = COMMANDS[0]
    text: str = ""
    hides: tuple[str, ...] = ()  # packages that are as if they were not installed


@dataclass(frozen=True)
class Outcome:
    """first: seconds until the first output; None if there was none."""

    first: float | None
    status: int
    output: str
    imported_torch: bool


# Runs a module as `python -m` does, where some packages cannot be found, and says at the end whether torch was.
PROGRAM = """
import importlib.util, runpy, sys
module, hidden, *words = sys.argv[1:]
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in hidden.split(",") else find(name, *rest)
sys.argv = ["hf-failfast" if module.endswith("cli") else "hf-failfast-eval", *words]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=False)
finally:
    sys.stdout.flush()
    print("torch was imported" if "torch" in sys.modules else "", end="", file=sys.stderr)
"""


def run(step: Step) -> Outcome:
    """The command in a process of its own, its output read as it comes."""
    command = [sys.executable, "-c", PROGRAM, step.module, ",".join(step.hides), *step.words]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(step.text.encode())
    process.stdin.close()
    parts: list[bytes] = []
    first = None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(timeout=60 * MINUTES):
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                break
            first = first or time.monotonic() - started
            parts.append(part)
    process.kill()
    output = b"".join(parts).decode(errors="replace")
    torch = "torch was imported"
    return Outcome(first, process.wait(), " ".join(output.replace(torch, "").split()), output.endswith(torch))


def faults(step: Step, outcome: Outcome, seconds: float) -> list[str]:
    """What was not as the step says."""
    found = []
    if outcome.first is None or outcome.first > seconds:
        found.append(f"the first output after {outcome.first and round(outcome.first, 1)} s")
    if outcome.status != step.status:
        found.append(f"exit status {outcome.status}, not {step.status}")
    if step.sentence not in outcome.output:
        found.append(f"without {step.sentence!r}: {outcome.output[-300:]!r}")
    if "Traceback" in outcome.output:
        found.append("a traceback")
    if outcome.imported_torch and not step.needs_torch:
        found.append("torch was imported")
    return found


def make_pair(folder: Path) -> None:
    """A tiny random target with a tokenizer; its own weights can draft for it."""
    import json

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    words = ["<mask>", "<end>", *"abcdefghijklmnopqrstuvwxyz"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>").save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=len(words), **sizes, eos_token_id=1, pad_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    path = folder / "config.json"
    section = {"attention": "causal_canvas", "shift": 1, "mask_token_id": 0, "chunk_length": 3}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"failfast": section}))


def steps(folder: Path) -> list[Step]:
    """The walk, on the pair in a folder."""
    bundled = str(Path(__file__).parents[1] / "hf_failfast" / "assets" / "smollm2-135m-drafter")
    model, out = str(folder / "model"), folder / "out"
    pair = ("--target", model, "--drafter", model)
    made = ("--target", model, "--output", str(out / "x"))
    short = ("--max-new-tokens", "8")
    plain = folder / "plain"
    plain.mkdir()
    section = '{"attention": "causal_canvas", "shift": 1, "mask_token_id": 0}'
    (plain / "config.json").write_text(f'{{"model_type": "llama", "failfast": {section}}}')
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    commands = ("demo", "generate", "bench", "doctor", "trace", "calibrate", "experiment", "train", "inspect")
    commands += ("export-hub", "push", "serve", "export-vllm", "adapt")
    evaluation = COMMANDS[1]
    task = ("--tasks", "failfast_arithmetic", "--limit", "1")
    return [
        Step(("--version",)),
        Step(("--help",), 0, "Lossless speculative decoding"),
        *(Step((command, "--help"), 0, "Usage") for command in commands),
        Step(("run", "--help"), 0, "--model_args", module=evaluation),
        # What each command does, on a tiny pair.
        Step(("inspect", bundled), 0, "causal_canvas"),
        Step(("inspect", model, "--target", model), 0, "fits the target", needs_torch=True),
        Step(("generate", *pair, *short, "--prompt", "a b"), 0, "> a b", needs_torch=True),
        Step(("generate", *pair, *short, "--json"), 0, '"text"', needs_torch=True, text="a b\n"),
        Step(("trace", *pair, *short, "--output", str(out / "trace.html")), 0, "trace.html", needs_torch=True),
        Step(("bench", *pair, *short, "--repeats", "1", "--prompt", "a b"), 0, "tokens/s", needs_torch=True),
        Step(("doctor", model, model, *short, "--prompt", "a b c", "--dtype", "float32"), 0, "speedup", True),
        Step(
            ("train", "--target", model, "--output", str(out / "drafter"), "--steps", "2", "--answer-tokens", "16"),
            0,
            "try it with: hf-failfast generate",
            needs_torch=True,
        ),
        Step(("export-hub", str(out / "repository"), "--drafter", model), 0, "upload it with", needs_torch=True),
        Step(("push", "user/name", str(out / "repository"), "--dry-run"), 0, "would go to user/name"),
        # Mistakes.
        Step(("genrate",), 2, "No such command 'genrate'"),
        Step(("generate", "--prmpt", "a"), 2, "No such option: --prmpt"),
        Step(("train",), 2, "Missing option '--target'"),
        Step(("generate", "--prompt", "a", "--chunk-length", "0"), 2, "`chunk_length` must be an integer >= 1"),
        Step(("generate", "--prompt", "a", "--length-policy", "godput"), 2, "['confidence', 'goodput', 'diffuspec']"),
        Step(("demo", "--confidence-threshold", "7"), 2, "`confidence_threshold` must be a number in [0, 1]"),
        Step(
            ("bench", "--chunk-length", "8", "--max-draft-length", "4"),
            2,
            "`max_draft_length` must be at least `chunk_length`, 8, but is 4",
        ),
        Step(("trace", "--dtype", "floaty"), 2, "'floaty' is not a torch dtype"),
        Step(("generate", "--prompt", "a", "--device", "gpu"), 2, "'gpu' is not a device"),
        Step(("generate",), 2, "there is nothing to answer"),
        Step(("generate", "--prompts", "nowhere.txt"), 2, "there is none at 'nowhere.txt'"),
        Step(("generate", "--prompt", "a", "--target", "/no/where", "--drafter", model), 2, "no folder '/no/where'"),
        Step(("generate", "--prompt", "a", "--target", bundled, "--drafter", model), 2, "is a drafter, not a target"),
        Step(("generate", "--prompt", "a", "--target", model), 1, "must be given together"),
        Step(("generate", "--prompt", "a", "--target", "no/where", "--drafter", model), 1, "unset HF_HUB_OFFLINE"),
        Step(("train", *made, "--minutes", "0"), 2, "must be positive"),
        Step(("train", *made, "--prompts", "nowhere.txt"), 2, "there is no file 'nowhere.txt'"),
        Step(("train", *made, "--layers", "a"), 1, "`layers` must be layer numbers separated by commas"),
        Step(("train", "--target", bundled, "--output", str(out / "x")), 2, "is a drafter, not a target"),
        Step(("adapt", model, model, "--prompts", "nowhere.txt"), 2, "there is none at 'nowhere.txt'"),
        Step(("calibrate", *pair, "--prompts", "nowhere.txt"), 2, "there is none at 'nowhere.txt'"),
        Step(("bench", *pair, "--replay", "nowhere.json"), 2, "there is no file 'nowhere.json'"),
        Step(("trace", "--output", str(folder / "broken" / "config.json" / "x")), 2, "is a file, so that"),
        Step(("doctor", "/no/where"), 2, "there is no folder '/no/where'"),
        Step(("push", "nouser", str(out)), 2, "'nouser' is not USER/NAME"),
        Step(("experiment", "nosuch"), 2, "'nosuch' is not one of"),
        Step(("inspect", str(plain)), 1, "has no weights"),
        Step(("inspect", str(folder / "broken")), 1, "is not JSON"),
        Step(("inspect", bundled, "--target", str(folder)), 2, "has no config.json"),
        Step(("calibrate",), 1, "hf_failfast[eval]", hides=("lm_eval",)),
        Step(("experiment", "tau", "--no-plot"), 1, "hf_failfast[eval]", hides=("lm_eval",)),
        Step(("experiment", "tau"), 1, "hf_failfast[plots]", hides=("matplotlib",)),
        Step(("train", *made), 1, "hf_failfast[train]", hides=("tqdm",)),
        Step(("bench", "--plots", str(out / "x")), 1, "hf_failfast[plots]", hides=("matplotlib",)),
        Step(("--help",), 1, "hf_failfast[demo]", hides=("typer",)),
        Step(("inspect", bundled), 1, "hf_failfast[demo]", hides=("rich",)),
        Step(("run", *task), 1, "hf_failfast[eval]", module=evaluation, hides=("lm_eval",)),
        Step(
            ("run", "--model", "hf_failfast", "--model_args", f"pretrained={model},assistent={model}", *task),
            1,
            "did you mean `assistant`",
            needs_torch=True,
            module=evaluation,
        ),
    ]


def main(
    seconds: Annotated[float, typer.Option(help="Until the first output, at most.")] = 1.5,
    only: Annotated[str, typer.Option(help="Only steps with this in their command line.")] = "",
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pair(folder / "model")
        failed = 0
        for step in steps(folder):
            line = " ".join(step.words).replace(name, "...")
            if only not in line:
                continue
            outcome = run(step)
            found = faults(step, outcome, seconds)
            failed += bool(found)
            print(f"{outcome.first or 0:5.2f} s  status {outcome.status}  {line}", flush=True)
            for fault in found:
                print(f"         FAILED: {fault}", flush=True)
    print(f"{failed} steps failed")
    raise typer.Exit(failed > 0)


if __name__ == "__main__":
    typer.run(main)
