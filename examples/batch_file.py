"""Answers every line of a file ({"prompt": ...}, or plain text) and appends {"prompt", "answer", ...} to another.

python examples/batch_file.py questions.jsonl answers.jsonl; an interrupted run continues after the last whole line.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from hf_failfast.pairs import encode_prompt, load_pair


def main(
    questions: Path,
    answers: Path,
    target: Annotated[str | None, typer.Option(help="By default SmolLM2-135M-Instruct and its drafter.")] = None,
    drafter: Annotated[str | None, typer.Option()] = None,
    max_new_tokens: Annotated[int, typer.Option()] = 256,
) -> None:
    prompts = read_prompts(questions)
    done = whole_lines(answers)
    pair = load_pair(target, drafter, "auto", "cpu")
    with answers.open("a", encoding="utf-8") as file:
        for prompt in track(prompts[done:], "Answering"):
            input_ids = encode_prompt(pair.tokenizer, prompt).to(pair.target.device)
            output = pair.target.generate(
                input_ids,
                assistant_model=pair.drafter,
                custom_generate="hf_failfast",
                max_new_tokens=max_new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
            )
            new_ids = output.sequences[0, input_ids.shape[1] :]
            answer = pair.tokenizer.decode(new_ids, skip_special_tokens=True)
            stats = output.speculation.as_dict()
            file.write(json.dumps({"prompt": prompt, "answer": answer, "speculation": stats}) + "\n")
            file.flush()


def read_prompts(path: Path) -> list[str]:
    """One prompt a line: {"prompt": ...}, or the line itself where it is no JSON."""
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {str(path)!r}.")
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    prompts = [prompt_of(line, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise typer.BadParameter(f"{str(path)!r} holds no prompt.")
    return prompts


def prompt_of(line: str, number: int) -> str:
    if not line.lstrip().startswith("{"):
        return line.rstrip("\r")
    try:
        return json.loads(line)["prompt"]
    except (json.JSONDecodeError, KeyError) as error:
        raise typer.BadParameter(f"line {number} is no JSON object with a `prompt`: {error!r}") from None


def whole_lines(path: Path) -> int:
    """How many whole lines a file has; half a line at its end is cut off."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    path.write_bytes(whole)
    return whole.count(b"\n")


if __name__ == "__main__":
    typer.run(main)
