"""Random stacks of logits processors give plain `generate`'s text and scores."""

from functools import partial
from typing import Any

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, target
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_support import processors_of
from scripted import ScriptedDrafter
from transformers import LogitsProcessor, LogitsProcessorList, WatermarkingConfig

START, NEW = 9, 14
# The tokens of the plain texts: a processor that acts on one of them changes the text.
TEXTS = {
    seed: plain(target("qwen3"), prompt(START, seed), max_new_tokens=NEW)[0, START:].tolist() for seed in range(4)
}
token_ids = st.sampled_from(sorted(set(sum(TEXTS.values(), [])))) | st.integers(0, 119)


class Favour(LogitsProcessor):
    """A user's processor that depends on the prefix."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + 2.0 * (torch.arange(scores.shape[1]) % 7 == input_ids[:, -1:] % 7)


PROCESSORS: dict[str, st.SearchStrategy[Any]] = {
    "repetition_penalty": st.floats(0.5, 2.0),
    "no_repeat_ngram_size": st.integers(1, 3),
    "bad_words_ids": st.lists(st.lists(token_ids, min_size=1, max_size=2), min_size=1, max_size=20),
    "sequence_bias": st.lists(
        st.tuples(st.lists(token_ids, min_size=1, max_size=2), st.floats(-9, 9)), min_size=1
    ).map(lambda pairs: [[ids, bias] for ids, bias in {tuple(ids): (ids, bias) for ids, bias in pairs}.values()]),
    "suppress_tokens": st.lists(token_ids, min_size=1, max_size=60),
    "begin_suppress_tokens": st.lists(token_ids, min_size=1, max_size=60),
    "forced_eos_token_id": token_ids,
    "min_length": st.integers(1, START + NEW),
    "min_new_tokens": st.integers(1, NEW),
    "exponential_decay_length_penalty": st.tuples(st.integers(0, NEW), st.floats(1.0, 2.0)),
    "remove_invalid_values": st.just(True),
    "renormalize_logits": st.just(True),
    "watermarking_config": st.sampled_from([WatermarkingConfig(), WatermarkingConfig(seeding_scheme="selfhash")]),
    "guidance_scale": st.floats(1.5, 20.0),
    "prefix_allowed_tokens_fn": st.just(lambda _, ids: [i for i in range(120) if i % 5 != int(ids[-1]) % 5]),
    "logits_processor": st.just(LogitsProcessorList([Favour()])),
}
WARPERS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0.3, 2.0),
    "top_k": st.integers(1, 60),
    "top_p": st.floats(0.3, 1.0),
    "min_p": st.floats(0.0, 0.3),
    "typical_p": st.floats(0.3, 1.0),
    "epsilon_cutoff": st.floats(0.0, 0.1),
    "eta_cutoff": st.floats(0.0, 0.1),
    "top_h": st.floats(0.3, 1.0),
}


def is_possible(options: dict[str, Any]) -> bool:
    """transformers refuses to force a token that it is told to suppress."""
    return options.get("forced_eos_token_id") not in options.get("suppress_tokens", [])


def some_of(options: dict[str, st.SearchStrategy[Any]], most: int) -> st.SearchStrategy[dict[str, Any]]:
    """Up to `most` of the options, each with a value."""
    names = st.lists(st.sampled_from(sorted(options)), unique=True, max_size=most)
    chosen = names.flatmap(lambda chosen: st.fixed_dictionaries({name: options[name] for name in chosen}))
    return chosen.filter(is_possible)


@settings(max_examples=40)
@given(
    options=some_of(PROCESSORS, 5),
    eos=st.none() | st.lists(token_ids, min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 3),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
)
def test_greedy_equals_plain_generation(options: dict[str, Any], eos: Any, seed: int, lengths: list[int]) -> None:
    """Greedy text under any stack of processors equals plain `generate`'s."""
    if "exponential_decay_length_penalty" in options:
        eos = eos or [3]  # transformers asks for one
    options = options | {"max_new_tokens": NEW, "eos_token_id": eos, "pad_token_id": 0}
    model, input_ids = target("qwen3"), prompt(START, seed)
    reference = plain(model, input_ids, **options)
    assert torch.equal(failfast(model, input_ids, ScriptedDrafter(reference, lengths), **options), reference)


@settings(max_examples=30)
@given(
    options=some_of(PROCESSORS, 2),
    warpers=some_of(WARPERS, 4),
    verifier=st.sampled_from(["sample_and_match", "rejection"]),
    seed=st.integers(0, 3),
)
def test_sampled_scores_are_the_processors_own(
    options: dict[str, Any], warpers: dict[str, Any], verifier: str, seed: int
) -> None:
    """The scores that each token is drawn from equal those of plain sampling after the same prefix."""
    model, input_ids = target("qwen3"), prompt(START, seed)
    options = options | warpers
    if "exponential_decay_length_penalty" in options:
        options = options | {"eos_token_id": 3, "pad_token_id": 0}  # transformers asks for one
    torch.manual_seed(seed)
    output = model.generate(
        input_ids,
        assistant_model=drafter("canvas_shift", "qwen3"),
        custom_generate="hf_failfast",
        do_sample=True,
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        verifier=verifier,
        **options,
    )
    own = {name: options.pop(name, None) for name in ("logits_processor", "prefix_allowed_tokens_fn")}
    processors = processors_of(model, input_ids, max_length=START + NEW, own=own, **options)
    for position, (scores, logits) in enumerate(zip(output.scores, output.logits, strict=True), start=START):
        expected = processors(output.sequences[:, :position], logits.clone())
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
        assert scores[0, output.sequences[0, position]] > -torch.inf


def test_what_is_left_out_is_what_transformers_refuses() -> None:
    """Options that the strategies leave out raise transformers' own error, with and without drafts."""
    options = {"forced_eos_token_id": 5, "suppress_tokens": [5, 6], "max_new_tokens": NEW}
    assert not is_possible(options)
    assert is_possible(options | {"suppress_tokens": [6]})
    for generate in (plain, partial(failfast, drafter=drafter("canvas_shift", "qwen3"))):
        with pytest.raises(ValueError, match="is also in `suppress_tokens`"):
            generate(target("qwen3"), prompt(START, 0), **options)


@pytest.mark.parametrize("name", sorted(PROCESSORS.keys() - {"remove_invalid_values", "renormalize_logits"}))
def test_every_processor_can_matter(name: str) -> None:
    """Each processor's strategy holds a value that changes the text."""
    model, changed = target("qwen3"), []

    @settings(max_examples=12)
    @given(value=PROCESSORS[name], seed=st.integers(0, 3))
    def one(value: Any, seed: int) -> None:
        eos = TEXTS[seed][5] if "min" in name or "decay" in name else None
        texts = [
            plain(model, prompt(START, seed), max_new_tokens=NEW, eos_token_id=eos, pad_token_id=0, **options)
            for options in ({}, {name: value})
        ]
        changed.append(not torch.equal(*texts))

    one()
    assert any(changed)
