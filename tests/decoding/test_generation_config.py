"""Every field of `GenerationConfig` is honoured, refused by name, or without effect in plain `generate` too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, target, tiny_model
from scripted import ScriptedDrafter
from tokenizers import Tokenizer, models
from transformers import CompileConfig, GenerationConfig, PreTrainedTokenizerFast, WatermarkingConfig

from hf_failfast.decoding.refusals import ASSISTANT_FIELDS

NEW = plain(target("llama"), prompt(9), max_new_tokens=20)[0, 9:].tolist()
END = {"eos_token_id": NEW[5], "pad_token_id": 0}
BANNED = NEW[4]

# Options that change the text: it equals plain `generate`'s with the field, and differs from the text without it.
CHANGES_THE_TEXT: dict[str, dict[str, Any]] = {
    "bad_words_ids": {"bad_words_ids": [[BANNED]]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [NEW[0]]},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
    "eos_token_id": END,
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (1, 9.0), "eos_token_id": 7},
    "forced_bos_token_id": {"forced_bos_token_id": 3},
    "forced_eos_token_id": {"forced_eos_token_id": 3},
    "guidance_scale": {"guidance_scale": 3.0},
    "max_length": {"max_length": 14, "max_new_tokens": None},
    "max_new_tokens": {"max_new_tokens": 5},
    "max_time": {"max_time": 1e-9},
    "min_length": END | {"min_length": 20},
    "min_new_tokens": END | {"min_new_tokens": 12},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "repetition_penalty": {"repetition_penalty": 3.0},
    "sequence_bias": {"sequence_bias": [[[BANNED], -50.0]]},
    "stop_strings": {"stop_strings": [chr(33 + BANNED)]},
    "suppress_tokens": {"suppress_tokens": [BANNED]},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=30.0)},
}

# Sampling options that change the scores of the first token: they equal plain `generate`'s with the field.
CHANGES_THE_SCORES: dict[str, Any] = {
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.5,
    "min_p": 0.3,
    "renormalize_logits": True,
    "temperature": 0.5,
    "top_h": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "typical_p": 0.5,
}

# Fields tested elsewhere, and the test.
HONOURED_ELSEWHERE = {
    "cache_implementation": "test_multi_turn::test_cache_implementation_static",
    "do_sample": "test_sampling::test_samples_follow_the_targets_distribution",
    "num_return_sequences": "test_batch_options::test_num_return_sequences",
    "output_attentions": "test_layer_outputs::test_one_prompt",
    "output_hidden_states": "test_layer_outputs::test_one_prompt",
    "output_logits": "test_parity::test_scores_and_logits",
    "output_scores": "test_parity::test_scores_and_logits",
    "pad_token_id": "test_batch::test_rows_that_end_at_different_times",
    "return_dict_in_generate": "test_parity::test_scores_and_logits",
    "token_healing": "test_generation_config::test_token_healing",
}

REFUSED: dict[str, dict[str, Any]] = {
    "assistant_confidence_threshold": {"assistant_confidence_threshold": 0.4},
    "assistant_early_exit": {"assistant_early_exit": 1},
    "assistant_ensemble_weight": {"assistant_ensemble_weight": 0.5},
    "assistant_lookbehind": {"assistant_lookbehind": 10},
    "constraints": {"constraints": [object()]},
    "dola_layers": {"dola_layers": "high"},
    "force_words_ids": {"force_words_ids": [[3]], "num_beams": 2},
    "is_assistant": {"is_assistant": True},
    "max_matching_ngram_size": {"max_matching_ngram_size": 2},
    "num_assistant_tokens": {"num_assistant_tokens": 5},
    "num_assistant_tokens_schedule": {"num_assistant_tokens_schedule": "constant"},
    "num_beams": {"num_beams": 4},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "prefill_chunk_size": {"prefill_chunk_size": 4},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "speculation_type": {"speculation_type": "x"},
    "target_lookbehind": {"target_lookbehind": 10},
    "use_cache": {"use_cache": False},
    "use_mtp": {"use_mtp": True},
}

# Fields that plain greedy search and sampling ignore too: for beams, other caches or compilation, or mere notes.
WITHOUT_EFFECT: dict[str, Any] = {
    "_commit_hash": None,
    "_from_model_config": None,
    "bos_token_id": 3,
    "cache_config": {"nbits": 4},
    "compile_config": CompileConfig(),
    "continuous_batching_config": {},
    "decoder_start_token_id": 3,
    "disable_compile": True,
    "diversity_penalty": 0.5,
    "early_stopping": True,
    "length_penalty": 2.0,
    "low_memory": True,
    "max_cache_len": 200,
    "num_beam_groups": 2,
    "remove_invalid_values": True,
    "transformers_version": None,
}

TABLES = (CHANGES_THE_TEXT, CHANGES_THE_SCORES, HONOURED_ELSEWHERE, REFUSED, WITHOUT_EFFECT)


def test_every_field_has_its_place() -> None:
    """Every field of the installed `GenerationConfig` is in exactly one table."""
    fields = set(vars(GenerationConfig()))
    places = [name for table in TABLES for name in table]
    assert not fields - set(places), "new fields: find out what they do, and put each into one of the tables"
    assert len(places) == len(set(places)), "a field has two places"


def known(table: dict[str, Any]) -> list[str]:
    """The table's fields that this version of transformers has."""
    return [name for name in table if hasattr(GenerationConfig(), name)]


@pytest.mark.parametrize("name", known(CHANGES_THE_TEXT))
def test_fields_that_change_the_text(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """The text equals plain `generate`'s, and the field changes it."""
    input_ids = prompt(1) if name == "forced_bos_token_id" else prompt(9)
    options = {"max_new_tokens": 20} | CHANGES_THE_TEXT[name]
    options |= {"tokenizer": tokenizer} if name == "stop_strings" else {}
    without = {key: value for key, value in options.items() if key != name} | {"max_new_tokens": 20}
    expected = plain(target("llama"), input_ids, **options)
    assert expected.tolist() != plain(target("llama"), input_ids, **without).tolist(), "the value has no effect"
    assert (
        failfast(target("llama"), input_ids, drafter("canvas_shift", "llama"), **options).tolist() == expected.tolist()
    )


@pytest.mark.parametrize("name", known(CHANGES_THE_SCORES))
def test_fields_that_change_the_scores(name: str) -> None:
    """The scores that a sample is drawn from equal plain `generate`'s, and the field changes them."""
    common: dict[str, Any] = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_scores": True, "top_k": 0}
    common |= {"do_sample": True}
    model, drafting = target("llama"), {"assistant_model": drafter("canvas_shift"), "custom_generate": "hf_failfast"}
    options = common | {name: CHANGES_THE_SCORES[name]}
    expected = model.generate(prompt(9), **options).scores[0]
    assert not torch.equal(expected, model.generate(prompt(9), **common).scores[0]), "the value has no effect"
    torch.testing.assert_close(model.generate(prompt(9), **options, **drafting).scores[0], expected)


@pytest.mark.parametrize("name", known(REFUSED))
@pytest.mark.parametrize("given", ["arguments", "generation_config"])
def test_fields_that_are_refused(name: str, given: str) -> None:
    """Refuses the field by name, as an argument and in a config object."""
    options = {"max_new_tokens": 3} | REFUSED[name]
    if given == "generation_config":
        options = {"generation_config": GenerationConfig(**options)}
    with pytest.raises(ValueError, match=f"`{name}`?=" if name in ("num_beams", "use_cache") else f"`{name}`"):
        failfast(tiny_model("llama"), prompt(9), drafter("canvas"), **options)


SAVED_NOTES = [name for name in known(REFUSED) if name in ASSISTANT_FIELDS]


@pytest.mark.parametrize("name", [name for name in known(REFUSED) if name not in SAVED_NOTES])
def test_saved_fields_that_are_refused(name: str) -> None:
    """Refuses the field of the target's own config by name, and says what to pass; passing it helps."""
    model = tiny_model("llama")
    for field, value in REFUSED[name].items():
        setattr(model.generation_config, field, value)
    message = f"`{name}`?=.*pass `{name}=" if name != "num_beams" else "`num_beams`=4"
    with pytest.raises(ValueError, match=message):
        failfast(model, prompt(9), drafter("canvas"), max_new_tokens=3)
    neutral = {"use_cache": True, "num_beams": 1}.get(name)
    model.generation_config.num_beams = model.generation_config.num_beams if name == "num_beams" else 1
    output = failfast(model, prompt(9), drafter("canvas"), max_new_tokens=3, **{name: neutral})
    assert output[0, 9:].tolist() == NEW[:3]


@pytest.mark.parametrize("name", SAVED_NOTES)
def test_saved_notes_on_assistants_are_warned_of(name: str) -> None:
    """Warns of a field of the target's own config that says how an assistant drafts; the text stays as it is."""
    model = tiny_model("llama")
    setattr(model.generation_config, name, REFUSED[name][name])
    with pytest.warns(UserWarning, match=f"`{name}`=.* has no effect here"):
        output = failfast(model, prompt(9), drafter("canvas_shift", "llama"), max_new_tokens=20)
    assert output[0, 9:].tolist() == NEW


@pytest.mark.parametrize("name", [name for name in known(WITHOUT_EFFECT) if WITHOUT_EFFECT[name] is not None])
def test_fields_without_effect(name: str) -> None:
    """The field leaves the text as it is, as in plain `generate`."""
    options = {"max_new_tokens": 20, name: WITHOUT_EFFECT[name]}
    expected = plain(target("llama"), prompt(9), **options)
    assert expected[0, 9:].tolist() == NEW, "the value has an effect"
    assert torch.equal(failfast(target("llama"), prompt(9), drafter("canvas_shift", "llama"), **options), expected)


def test_token_healing() -> None:
    """Token healing changes the text, and as in plain `generate`."""
    inner = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "aba": 3, "<end>": 4}, [("a", "b"), ("ab", "a")]))
    words = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<end>", bos_token="<end>", eos_token="<end>")
    options = {"max_new_tokens": 8, "token_healing": True, "tokenizer": words}
    input_ids = torch.tensor([[0, 1, 3, 0]])
    model = tiny_model("llama", vocab_size=5, bos_token_id=4, pad_token_id=4)
    expected = plain(model, input_ids, **options)
    assert expected.tolist() != plain(model, input_ids, max_new_tokens=8).tolist(), "healed nothing"
    assert failfast(model, input_ids, ScriptedDrafter(expected, [1, 0, 3]), **options).tolist() == expected.tolist()


@pytest.mark.parametrize("name", HONOURED_ELSEWHERE)
def test_the_other_tests_exist(name: str) -> None:
    """Every test named in HONOURED_ELSEWHERE exists."""
    file, _, function = HONOURED_ELSEWHERE[name].partition("::")
    assert f"def {function}(" in next(Path(__file__).parents[1].rglob(f"{file}.py")).read_text()
