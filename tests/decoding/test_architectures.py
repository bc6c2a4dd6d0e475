"""Tokens equal plain `generate`'s over architectures: tiny random models, alone and in a batch, in both loops, within
and beyond the limits of their configs, with both runners."""

from typing import Any

import pytest
import torch
from conftest import LOOPS, POSITIONS, VOCAB_SIZE, failfast, plain, prompt, tiny_model
from graph_support import Recorder
from scripted import ScriptedDrafter
from test_batch import LENGTHS, batch, scripts

from hf_failfast.compatibility import READS_WHOLE_TEXT_AGAIN
from hf_failfast.engine.runner_pool import RunnerPool

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8}
LATENT |= {"qk_nope_head_dim": 8, "v_head_dim": 16, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8},
    "mixtral": EXPERTS,
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "mistral": {"sliding_window": 16},
    "gpt2": {},
    "gpt_neox": {},
    "gpt_oss": EXPERTS | {"head_dim": 8, "sliding_window": 16, "attn_implementation": "eager"},
    "phi": {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "phi3": {"num_key_value_heads": 2},
    "olmo": {},
    "olmo2": {},
    "cohere": {},
    "cohere2": {"sliding_window": 16},
    "stablelm": {},
    "starcoder2": {},
    "granite": {},
    "smollm3": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gptj": {"rotary_dim": 4},
    "glm4": {"head_dim": 8},
    "deepseek_v3": LATENT | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "llama4_text": {"head_dim": 8, "num_local_experts": 2},
    "exaone4": {"sliding_window": 16},
    "nemotron": {},
    "gpt_bigcode": {},
    "falcon": {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
}
QUICK = ("none", "repetition_penalty")
PROCESSORS: dict[str, dict[str, Any]] = {
    "none": {},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[5], [7, 8]]},
    "sequence_bias": {"sequence_bias": [[[9], 4.0], [[11, 12], -6.0]]},
    "suppress_tokens": {"suppress_tokens": [3, 4], "begin_suppress_tokens": [6]},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "remove_invalid_values": {"remove_invalid_values": True, "renormalize_logits": True},
}
NEW = 20


def model_of(name: str) -> Any:
    return tiny_model(name, **ARCHITECTURES[name])


@pytest.mark.parametrize(
    "processor", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.exhaustive) for name in PROCESSORS]
)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str, processor: str) -> None:
    """Both loops, and a batch, give every architecture's own greedy tokens."""
    model, options = model_of(name), PROCESSORS[processor] | {"max_new_tokens": NEW}
    assert model.config.get_text_config().vocab_size == VOCAB_SIZE < POSITIONS
    references = [plain(model, prompt(length), **options) for length in LENGTHS]
    for length, reference in zip(LENGTHS[:1], references, strict=False):
        for generate in LOOPS.values():
            script = ScriptedDrafter(reference, [3, 0, 10, 1])
            assert torch.equal(generate(model, prompt(length), script, **options), reference)
    ids, mask = batch()
    proposer = scripts(references, [10, 0, 3], [0], [5, 10, 1, 2])
    output = failfast(model, ids, proposer, attention_mask=mask, **options)
    expected = [reference[0, length:].tolist() for reference, length in zip(references, LENGTHS, strict=True)]
    assert output[:, ids.shape[1] :].tolist() == expected


# Beyond the limits

LEARNED = ("gpt2", "opt", "gptj", "gpt_bigcode")  # positions from a table: plain `generate` ends with it, too
BEYOND: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, options | {"max_position_embeddings": max(LENGTHS) + NEW - 1 if name in LEARNED else 32})
    for name, options in ARCHITECTURES.items()
}
CHUNKS = ARCHITECTURES["llama4_text"] | {"attention_chunk_size": 16}
SCALED = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
BEYOND |= {
    "llama4_text, chunks": ("llama4_text", CHUNKS),
    "llama4_text, chunks, eager": ("llama4_text", CHUNKS | {"attn_implementation": "eager"}),
    "llama4_text, chunks of every layer": ("llama4_text", CHUNKS | {"no_rope_layers": [1, 1]}),
    "ministral3": ("ministral3", {"head_dim": 8, "rope_parameters": SCALED | {"llama_4_scaling_beta": 0.5}}),
}
RUNNERS: dict[str, Any] = {
    "eager": lambda: RunnerPool("eager"),
    "graphs": lambda: RunnerPool("cuda_graphs", Recorder()),
}


def beyond(name: str) -> Any:
    kind, options = BEYOND[name]
    return tiny_model(kind, **options)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", BEYOND)
def test_beyond_the_limits(name: str, runner: str) -> None:
    """Texts that cross positions, windows and chunks keep their tokens: alone, ragged, and even at the start."""
    model, options = beyond(name), {"max_new_tokens": NEW}
    references = [plain(model, prompt(length), **options) for length in LENGTHS]
    for length, reference in zip(LENGTHS[:1], references, strict=False):
        script = ScriptedDrafter(reference, [3, 0, 10, 1])
        script.runners = RUNNERS[runner]()
        assert torch.equal(failfast(model, prompt(length), script, **options), reference), f"alone from {length}"
    ids, mask = batch()
    rows = scripts(references, [10, 0, 3], [0], [5, 10, 1, 2])
    rows.runners = RUNNERS[runner]()
    output = failfast(model, ids, rows, attention_mask=mask, **options)
    expected = [reference[0, length:].tolist() for reference, length in zip(references, LENGTHS, strict=True)]
    assert output[:, ids.shape[1] :].tolist() == expected
    if runner == "graphs":
        return
    even = [plain(model, prompt(max(LENGTHS), seed), **options) for seed in range(3)]
    rows = scripts(even, [10, 0, 3], [0], [5, 10, 1, 2])
    rows.runners = RUNNERS[runner]()
    output = failfast(model, torch.cat(even)[:, : max(LENGTHS)], rows, **options)
    assert torch.equal(output, torch.cat(even))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in LEARNED])
def test_a_prompt_beyond_the_positions(name: str) -> None:
    """Rotary targets take prompts that are longer than `max_position_embeddings`, and are drafted for."""
    model, options = beyond(name), {"max_new_tokens": NEW}
    reference = plain(model, prompt(40), **options)
    script = ScriptedDrafter(reference, [3, 0, 10, 1])
    output = failfast(model, prompt(40), script, return_dict_in_generate=True, **options)
    assert torch.equal(output.sequences, reference)
    assert output.speculation.accepted > 8


# Rotary embeddings that change

LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 8.0]}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
CHANGING: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": ("llama", {"max_position_embeddings": 128, "rope_parameters": LONG}),
    "longrope, the text is read again": (
        "phi3",
        {
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "rope_parameters": LONG | {"partial_rotary_factor": 1.0},
        },
    ),
    "longrope of Phi-MoE": (
        "phimoe",
        EXPERTS
        | {
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "rope_parameters": LONG | {"short_mscale": 1.0, "long_mscale": 1.2},
        },
    ),
    "dynamic NTK": ("llama", {"max_position_embeddings": 32, "rope_parameters": DYNAMIC}),
}


READ_AGAIN = ("longrope, the text is read again", "longrope of Phi-MoE")


def changing(name: str) -> Any:
    """The target anew: dynamic NTK remembers how long its texts were."""
    kind, options = CHANGING[name]
    return tiny_model(kind, **options)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", CHANGING)
def test_rotary_embeddings_change(name: str, runner: str) -> None:
    """A text that crosses the original length keeps its tokens; drafts end there, longrope's go on beyond."""
    options = {"max_new_tokens": 30}
    for length in (23, 31, 32, 33):
        if name in READ_AGAIN and length <= 32 and not READS_WHOLE_TEXT_AGAIN:
            with pytest.raises(ValueError, match="transformers before 5.20, whose plain"):
                failfast(changing(name), prompt(length), ScriptedDrafter(prompt(length)), **options)
            continue
        reference = plain(changing(name), prompt(length), **options)
        script = ScriptedDrafter(reference, [3, 10, 0, 10, 1])
        script.runners = RUNNERS[runner]()
        output = failfast(changing(name), prompt(length), script, return_dict_in_generate=True, **options)
        assert torch.equal(output.sequences, reference), f"from {length}"
        assert output.speculation.accepted > 8 or name == "dynamic NTK"


@pytest.mark.parametrize("name", CHANGING)
def test_rotary_embeddings_before_the_change(name: str) -> None:
    """Batches that end before the original length are drafted for; padding beyond it changes nothing."""
    model, options = changing(name), {"max_length": 31}
    references = [plain(model, prompt(length), max_new_tokens=8) for length in LENGTHS]
    ids, mask = batch()
    rows = scripts(references, [1, 8], [10], [8])
    output = failfast(model, ids, rows, attention_mask=mask, return_dict_in_generate=True, **options)
    expected = [reference[0, length:].tolist() for reference, length in zip(references, LENGTHS, strict=True)]
    assert output.sequences[:, ids.shape[1] :].tolist() == expected
    assert output.speculation.accepted > 8


def test_a_second_call_after_a_long_one() -> None:
    """What dynamic NTK remembers of a long text acts on the next one as in plain `generate`."""
    first, second = changing("dynamic NTK"), changing("dynamic NTK")
    for length in (40, 9, 40, 31, 40, 32, 33):
        expected = plain(first, prompt(length), max_new_tokens=30)
        script = ScriptedDrafter(expected, [3, 10, 0, 10, 1])
        assert torch.equal(failfast(second, prompt(length), script, max_new_tokens=30), expected), f"from {length}"


@pytest.mark.parametrize("name", CHANGING)
def test_rotary_embeddings_change_in_a_batch(name: str) -> None:
    """Refuses batches whose rows may lie on both sides of the original length, and names it."""
    ids, mask = batch()
    script = ScriptedDrafter(ids[:1])
    with pytest.raises(ValueError, match=r"batch of 3 prompts with `max_length`=43 .* change .*`=32"):
        failfast(changing(name), ids, script, attention_mask=mask, max_new_tokens=NEW)


def test_longrope_in_a_batch_beyond_the_change() -> None:
    """Rows that are all longer than the original length are drafted for together."""
    model, lengths, options = changing("longrope"), (40, 33, 36), {"max_new_tokens": NEW}
    references = [plain(model, prompt(length), **options) for length in lengths]
    ids, mask = batch(lengths)
    output = failfast(model, ids, scripts(references, [10, 0, 3], [0], [5, 10]), attention_mask=mask, **options)
    expected = [reference[0, length:].tolist() for reference, length in zip(references, lengths, strict=True)]
    assert output[:, ids.shape[1] :].tolist() == expected
