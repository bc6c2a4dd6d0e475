"""`python -m tools.picture`: the pictures of the README, an answer of the demo as two commands show it.

docs/generation.svg is that of `hf-failfast generate`; docs/trace.png that of `hf-failfast trace`, for which Chromium
is needed.
"""

import io
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

from hf_failfast import ConfidenceThreshold
from hf_failfast.cli.output.streaming import ACCEPTED_STYLE, ColourStreamer
from hf_failfast.cli.output.trace_page import trace_page
from hf_failfast.measure.tracing import trace
from hf_failfast.pairs import Pair, encode_prompt, load_pair

DOCS = Path(__file__).parents[1] / "docs"
OUT, PAGE_OUT = DOCS / "generation.svg", DOCS / "trace.png"
PROMPT = "What is the difference between a comet and an asteroid?"
PAGE_PROMPT = "Write a Python function that checks whether a number is prime."
PAGE_SIZE = (960, 1130)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def every_round(pair: Pair) -> ConfidenceThreshold:
    """The drafter's own rule, without the bound that may stop drafting where this machine is busy just now."""
    return ConfidenceThreshold(pair.drafter.config)


def picture(pair: Pair, prompt: str, max_new_tokens: int) -> str:
    """The answer as SVG: accepted draft tokens coloured, the target's own plain, the counts below."""
    console = Console(record=True, width=92, file=io.StringIO(), force_terminal=True)
    console.print(f"> {prompt}", style="bold", markup=False)
    input_ids = encode_prompt(pair.tokenizer, prompt).to(pair.target.device)
    printed = io.StringIO()
    streamer = ColourStreamer(pair.tokenizer, Console(file=printed, force_terminal=True, color_system="standard"))
    output = pair.target.generate(
        input_ids,
        assistant_model=pair.drafter,
        custom_generate="hf_failfast",
        length_policy=every_round(pair),
        streamer=streamer,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
    )
    console.print(Text.from_ansi(printed.getvalue().rstrip("\n")))  # as one text, for the picture's width to wrap
    stats = output["speculation"]
    counts = f"{stats.emitted} tokens in {stats.rounds} rounds, {stats.accepted} of them [{ACCEPTED_STYLE}]drafted[/]"
    console.print(f"\n{counts}")
    return console.export_svg(title="hf-failfast generate", theme=DEFAULT_TERMINAL_THEME, unique_id="generation")


def page(pair: Pair, prompt: str, max_new_tokens: int) -> str:
    """The trace page of an answer, without the table of all numbers."""
    input_ids = encode_prompt(pair.tokenizer, prompt).to(pair.target.device)
    arguments = {"max_new_tokens": max_new_tokens, "do_sample": False, "length_policy": every_round(pair)}
    traced = trace(pair.target, input_ids, pair.drafter, **arguments)
    return trace_page(traced, pair.tokenizer, prompt=prompt, names=pair.names, facts={})


def photograph(browser: str, html: str, path: Path) -> None:
    """The page's upper part as a browser draws it, PNG."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "page.html"
        file.write_text(html, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += [f"--user-data-dir={name}/profile", f"--window-size={PAGE_SIZE[0]},{PAGE_SIZE[1]}"]
        command = [browser, *options, f"--screenshot={path}", file.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    pair = load_pair(None, None, "auto", "cpu")
    OUT.write_text(picture(pair, PROMPT, 80), encoding="utf-8")
    print(f"wrote {OUT.name}")
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        print(f"{PAGE_OUT.name} is as it was: there is no {BROWSERS[0]} to draw it")
        return
    photograph(browser, page(pair, PAGE_PROMPT, 160), PAGE_OUT)
    print(f"wrote {PAGE_OUT.name}")


if __name__ == "__main__":
    main()
