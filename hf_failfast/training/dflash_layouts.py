"""The two published layouts of a DFlash checkpoint: config.json and tensors, with the authors' names."""

from typing import Any

import torch

from .dflash import BlockDrafter

SPECULATORS_VERSION = "0.9.0"  # whose format is written


def zlab_checkpoint(drafter: BlockDrafter, canvas_length: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """As the paper's authors (z-lab) publish: Qwen3's config on top, the target's own embedding and whole head."""
    config = {
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
    return config, drafter.stored_weights()


def speculators_checkpoint(
    drafter: BlockDrafter, canvas_length: int, target: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """As vLLM's speculators writes: states counted from the embedding, and a head for a reduced vocabulary."""
    vocabulary, size = drafter.draft_vocabulary, drafter.body.config.vocab_size
    config = {
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
    tensors = drafter.stored_weights()
    if vocabulary is not None:
        ids = vocabulary.cpu()
        tensors |= {
            "d2t": ids - torch.arange(len(ids)),
            "t2d": torch.zeros(size, dtype=torch.bool).index_fill(0, ids, True),
            "lm_head.weight": drafter.head.to("cpu", torch.bfloat16).contiguous(),
        }
    return config, tensors


def stored_vocabulary(tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """The target's ids that a stored drafter of any form can propose; None: all."""
    if "d2t" in tensors:
        return tensors["d2t"] + torch.arange(len(tensors["d2t"]))
    return tensors.get("draft_vocabulary")


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
