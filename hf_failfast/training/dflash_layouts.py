"""The config.json of a DFlash checkpoint in its two published layouts, which have the tensors' names in common."""

from typing import Any

from .dflash import BlockDrafter

SPECULATORS_VERSION = "0.9.0"  # whose format is written


def zlab_json(drafter: BlockDrafter, canvas_length: int) -> dict[str, Any]:
    """As the paper's authors (z-lab) publish: Qwen3's config on top, the target's own embedding and whole head."""
    return {
        **_layers_json(drafter),
        "rope_scaling": None,
        "rope_theta": drafter.body.config.rope_parameters["rope_theta"],
        "architectures": ["DFlashDraftModel"],
        "block_size": canvas_length + 1,
        "dflash_config": {
            "mask_token_id": drafter.mask_token_id,
            "target_layer_ids": list(drafter.target_layer_ids),
        },
        "dtype": "bfloat16",
        "num_target_layers": drafter.num_target_layers,
    }


def speculators_json(drafter: BlockDrafter, canvas_length: int, target: str) -> dict[str, Any]:
    """As vLLM's speculators writes: states counted from the embedding, and a head for a reduced vocabulary."""
    vocabulary, size = drafter.draft_vocabulary, drafter.body.config.vocab_size
    return {
        "architectures": ["DFlashDraftModel"],
        "aux_hidden_state_layer_ids": list(drafter.target_states),
        "block_size": canvas_length + 1,
        "draft_vocab_size": size if vocabulary is None else len(vocabulary),
        "dtype": "bfloat16",
        "mask_token_id": drafter.mask_token_id,
        "sample_from_anchor": False,
        "sliding_window_non_causal": True,  # no layer slides, but with False vLLM reads all layers causally
        "speculators_config": {
            "algorithm": "dflash",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": canvas_length}],
            "verifier": {"architectures": [drafter.target_class], "name_or_path": target},
        },
        "speculators_model_type": "dflash",
        "speculators_version": SPECULATORS_VERSION,
        "transformer_layer_config": _layers_json(drafter) | {"rope_parameters": drafter.body.config.rope_parameters},
    }


def _layers_json(drafter: BlockDrafter) -> dict[str, Any]:
    """The config of the layers, as both write it, but for the rotary embedding."""
    config = drafter.body.config
    names = (
        "attention_bias", "attention_dropout", "head_dim", "hidden_act", "hidden_size", "initializer_range",
        "intermediate_size", "layer_types", "max_position_embeddings", "max_window_layers", "model_type",
        "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "sliding_window",
        "tie_word_embeddings", "use_cache", "use_sliding_window", "vocab_size",
    )  # fmt: skip
    return {name: getattr(config, name) for name in names}
