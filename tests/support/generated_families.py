"""Tiny targets near their limits: the architectures that generated calls are made for."""

import copy
import functools
from typing import Any

from conftest import VOCAB_SIZE, tiny_model
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

NEAR = 32  # positions of rotary targets and the length at which rotary embeddings change
TABLE = 40  # learned positions
WINDOW = 16  # of sliding windows and chunks

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
NAMED_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8}
LATENT |= {"qk_nope_head_dim": 8, "v_head_dim": 16, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": NEAR}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 8.0]}
LONG_CONFIG = {"max_position_embeddings": 4 * NEAR, "original_max_position_embeddings": NEAR}
SCALED = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": WINDOW}
SEQ2SEQ = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "init_std": 0.3}
SEQ2SEQ |= {"encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
SHARED = {"vocab_size_per_layer_input": VOCAB_SIZE, "num_hidden_layers": 6, "num_kv_shared_layers": 2, "head_dim": 8}
SHARED |= {"hidden_size_per_layer_input": 8, "layer_types": ["sliding_attention", "full_attention"] * 3}
SHARED |= {"sliding_window": WINDOW}
DECODER = {"is_decoder": True, "type_vocab_size": 2}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
LLAMA4 = {"head_dim": 8, "num_local_experts": 2}

# Rotary embeddings, or none: texts may go beyond `max_position_embeddings`.
ROTARY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "llama4": ("llama4_text", LLAMA4),
    "llama4, chunks": ("llama4_text", LLAMA4 | {"attention_chunk_size": WINDOW}),
    "llama4, chunks of every layer": (
        "llama4_text",
        LLAMA4 | {"attention_chunk_size": WINDOW, "no_rope_layers": [1, 1]},
    ),
    "llama4, no rotation": ("llama4_text", LLAMA4 | {"no_rope_layers": [1, 0], "floor_scale": WINDOW}),
    "longrope": ("llama", {"max_position_embeddings": 4 * NEAR, "rope_parameters": LONG}),
    "phi3, longrope": ("phi3", LONG_CONFIG | {"rope_parameters": LONG | {"partial_rotary_factor": 1.0}}),
    "phimoe, longrope": (
        "phimoe",
        EXPERTS | LONG_CONFIG | {"rope_parameters": LONG | {"short_mscale": 1.0, "long_mscale": 1.2}},
    ),
    "dynamic NTK": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}),
    "yarn": ("qwen3", {"head_dim": 8, "rope_parameters": SCALED | {"rope_type": "yarn"}}),
    "llama3": (
        "llama",
        {"rope_parameters": SCALED | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    ),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "ministral3": (
        "ministral3",
        {"head_dim": 8, "rope_parameters": SCALED | {"rope_type": "yarn", "llama_4_scaling_beta": 0.5}},
    ),
    "gemma3n": (
        "gemma3n_text",
        SHARED | {"laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 6},
    ),
    "gemma4": ("gemma4_text", SHARED | {"global_head_dim": 8, "use_double_wide_mlp": True}),
    "qwen2": ("qwen2", {}),
    "qwen2, sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "qwen2_moe": ("qwen2_moe", NAMED_EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("qwen3_moe", NAMED_EXPERTS | {"head_dim": 8}),
    "mixtral": ("mixtral", EXPERTS | {"sliding_window": WINDOW}),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma2": ("gemma2", GEMMA | {"final_logit_softcapping": 15.0}),
    "gemma3": ("gemma3_text", GEMMA),
    "vaultgemma": ("vaultgemma", GEMMA),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_oss": ("gpt_oss", EXPERTS | {"head_dim": 8, "sliding_window": WINDOW}),
    "phi": ("phi", {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {"sliding_window": WINDOW}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "cohere": ("cohere", {}),
    "cohere2": ("cohere2", {"sliding_window": WINDOW}),
    "stablelm": ("stablelm", {}),
    "starcoder2": ("starcoder2", {"sliding_window": WINDOW}),
    "granite": ("granite", {}),
    "granitemoe": ("granitemoe", EXPERTS),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "glm": ("glm", {"head_dim": 8}),
    "glm4": ("glm4", {"head_dim": 8}),
    "deepseek_v3": (
        "deepseek_v3",
        LATENT | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "exaone4": ("exaone4", {"sliding_window": WINDOW}),
    "nemotron": ("nemotron", {}),
    "falcon": ("falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "apertus": ("apertus", {}),
    "arcee": ("arcee", {}),
    "bitnet": ("bitnet", {}),
    "diffllama": ("diffllama", {}),
    "doge": ("doge", {}),
    "ernie4_5": ("ernie4_5", {"head_dim": 8}),
    "helium": ("helium", {"head_dim": 8}),
    "persimmon": ("persimmon", {}),
    "seed_oss": ("seed_oss", {"head_dim": 8}),
    "nanochat": ("nanochat", {}),
    "gpt_neox_japanese": ("gpt_neox_japanese", {}),
    "moshi": ("moshi", {"ffn_dim": 64, "sliding_window": WINDOW}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    # Distances in place of positions.
    "bloom": ("bloom", {}),
    "falcon, ALiBi": ("falcon", {"alibi": True, "num_kv_heads": 4, "multi_query": False}),
    "mpt": ("mpt", {"use_cache": True, "max_seq_len": 128}),
}

# Positions from a table: plain `generate` ends with it, or reads beside it.
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_neo": (
        "gpt_neo",
        {"num_layers": 2, "num_heads": 4, "window_size": 8, "attention_types": [[["global", "local"], 1]]},
    ),
    "biogpt": ("biogpt", {}),
    "codegen": ("codegen", {"rotary_dim": 4, "n_head": 4, "n_embd": 32, "n_layer": 2}),
    "ctrl": ("ctrl", {"dff": 64}),
    "xglm": ("xglm", {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64, "init_std": 0.3}),
    "bert": ("bert", DECODER),
    "roberta": ("roberta", DECODER | {"pad_token_id": 1}),
    "electra": ("electra", DECODER | {"embedding_size": 32}),
    "megatron-bert": ("megatron-bert", DECODER),
    "roformer": ("roformer", DECODER | {"embedding_size": 32}),
    "bart": ("bart", SEQ2SEQ),
    "mbart": ("mbart", SEQ2SEQ),
    "marian": ("marian", SEQ2SEQ | {"decoder_vocab_size": VOCAB_SIZE, "pad_token_id": 0}),
    "trocr": ("trocr", SEQ2SEQ),
}

FAMILIES = {
    **{name: (kind, {"max_position_embeddings": NEAR} | options) for name, (kind, options) in ROTARY.items()},
    **{name: (kind, {"max_position_embeddings": TABLE} | options) for name, (kind, options) in TABLES.items()},
}
# An older transformers lacks some.
INSTALLED = [name for name, (kind, _) in FAMILIES.items() if kind in CONFIG_MAPPING]

REMEMBERS = ("dynamic NTK",)  # how long its last text was


@functools.cache
def _model(family: str, attention: str) -> PreTrainedModel:
    kind, options = FAMILIES[family]
    try:
        model = tiny_model(kind, attn_implementation=attention, **options)
    except ValueError:  # of a family without SDPA
        model = tiny_model(kind, attn_implementation="eager", **options)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "forced_eos_token_id"):
        setattr(model.generation_config, name, None)
    return model


def model_of(family: str, attention: str = "sdpa") -> PreTrainedModel:
    """The family's target, shared, or anew where it remembers earlier texts."""
    model = _model(family, attention)
    return copy.deepcopy(model) if family in REMEMBERS else model
