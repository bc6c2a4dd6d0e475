"""A pair so small that a forward is nearly all overhead, as on a fast GPU."""

import copy
import tempfile

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

import hf_failfast

WIDTH, LAYERS, DRAFT_LAYERS = 64, 8, 2
LATER_LAYERS = 0.04  # what the layers that only the target has are scaled by


def tiny_pair(
    vocab_size: int, intermediate_size: int, initializer_range: float
) -> tuple[PreTrainedModel, PreTrainedModel, hf_failfast.DiffusionDrafter]:
    """(target, its first layers as an autoregressive assistant, the same as a drafter), with random weights.

    The last id is the drafter's mask. With chunks of one token it is never fed: the drafter then reads as the
    autoregressive model.
    """
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=intermediate_size,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        initializer_range=initializer_range,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    target = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for layer in target.model.layers[DRAFT_LAYERS:]:
            layer.self_attn.o_proj.weight.mul_(LATER_LAYERS)
            layer.mlp.down_proj.weight.mul_(LATER_LAYERS)
    small = copy.deepcopy(config)
    small.num_hidden_layers = DRAFT_LAYERS
    small.layer_types = config.layer_types[:DRAFT_LAYERS]
    assistant = Qwen2ForCausalLM(small).eval()
    assistant.load_state_dict(target.state_dict(), strict=False)
    with tempfile.TemporaryDirectory() as folder:
        assistant.save_pretrained(folder)
        drafter = hf_failfast.load_drafter(
            folder, attention="causal_canvas", shift=1, mask_token_id=vocab_size - 1, dtype=torch.float32
        )
    return target, assistant, drafter
