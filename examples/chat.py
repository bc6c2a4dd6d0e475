"""A chat in the terminal that keeps the caches of target and drafter from turn to turn: no turn is read twice.

python examples/chat.py [--target ... --drafter ...]; an empty line or the end of the input ends it.
"""

from typing import Annotated

import typer
from transformers import DynamicCache, TextStreamer

from hf_failfast import Conversation
from hf_failfast.pairs import load_pair


def main(
    target: Annotated[str | None, typer.Option(help="By default SmolLM2-135M-Instruct and its drafter.")] = None,
    drafter: Annotated[str | None, typer.Option()] = None,
    max_new_tokens: Annotated[int, typer.Option()] = 256,
) -> None:
    pair = load_pair(target, drafter, "auto", "cpu")
    streamer = TextStreamer(pair.tokenizer, skip_prompt=True, skip_special_tokens=True)
    cache, conversation = DynamicCache(config=pair.target.config), Conversation(pair.drafter)
    text = ""
    while question := asked():
        text += turn(pair.tokenizer, question, is_first=not text)
        inputs = pair.tokenizer(text, add_special_tokens=False, return_tensors="pt").to(pair.target.device)
        output = pair.target.generate(
            **inputs,
            assistant_model=conversation,
            custom_generate="hf_failfast",
            cache=cache,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            streamer=streamer,
            return_dict_in_generate=True,
        )
        text = pair.tokenizer.decode(output.sequences[0])
        print(f"[{output.speculation.mean_acceptance_length:.2f} tokens per round]")


def asked() -> str:
    """The next question; an empty one at the end of the input and on Ctrl-C."""
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


def turn(tokenizer, question: str, is_first: bool) -> str:
    """What the template adds to the text so far for this question, up to where the answer begins."""
    if tokenizer.chat_template is None:
        return question
    turns = [{"role": "user", "content": question}]
    if is_first:
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    before = [{"role": "user", "content": ""}, {"role": "assistant", "content": "\0"}]
    whole = tokenizer.apply_chat_template([*before, *turns], add_generation_prompt=True, tokenize=False)
    after = whole.partition("\0")[2]
    ending = tokenizer.eos_token or ""
    return after.removeprefix(ending)  # the text already holds the answer's end of turn


if __name__ == "__main__":
    typer.run(main)
