"""Tokens equal plain `generate`'s over architectures: tiny random models, alone and in a batch, in both loops."""

from typing import Any

import pytest
import torch
from conftest import LOOPS, POSITIONS, VOCAB_SIZE, failfast, plain, prompt, tiny_model
from scripted import ScriptedDrafter
from test_batch import LENGTHS, batch, scripts

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
