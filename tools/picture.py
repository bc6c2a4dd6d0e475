"""`python -m tools.picture`: docs/generation.svg, an answer of the demo, as `hf-failfast generate` shows it."""

import io
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

from hf_failfast.cli.output.streaming import ACCEPTED_STYLE, ColourStreamer
from hf_failfast.pairs import Pair, encode_prompt, load_pair

OUT = Path(__file__).parents[1] / "docs" / "generation.svg"
PROMPT = "What is the difference between a comet and an asteroid?"


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


def main() -> None:
    OUT.write_text(picture(load_pair(None, None, "auto", "cpu"), PROMPT, 80), encoding="utf-8")
    print(f"wrote {OUT.name}")


if __name__ == "__main__":
    main()
