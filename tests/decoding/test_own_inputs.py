"""Models with a `prepare_inputs_for_generation` of their own: the loop never calls it, so each has its place here."""

from typing import Any

import pytest
import torch
import transformers
from conftest import LOOPS, failfast, plain, prompt
from scripted import ScriptedDrafter
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, GenerationMixin
from transformers.models.auto import modeling_auto

from hf_failfast.compatibility import COMPILES_ASSISTED
from hf_failfast.decoding.refusals import OWN_INPUTS

# What the method does beyond transformers' own. For a text these make the inputs that the loop makes; arguments for
# images and audio are refused by name.
SAME_FOR_TEXT = {
    "BloomForCausalLM": "the mask of a static cache (transformers before 5.23)",
    "CTRLLMHeadModel": "drops `token_type_ids`",
    "Ernie4_5_VLMoeForConditionalGeneration": "`mm_token_type_ids` of the prompt",
    "Exaone4_5_ForConditionalGeneration": "lets the forward count positions",
    "Gemma3ForConditionalGeneration": "`token_type_ids` of the prompt",
    "Gemma4ForConditionalGeneration": "`mm_token_type_ids` and `per_layer_inputs` of the prompt",
    "Gemma4UnifiedForConditionalGeneration": "`mm_token_type_ids` of the prompt",
    "HunYuanVLForConditionalGeneration": "positions of images (transformers before 5.23)",
    "HyperCLOVAXVisionV2ForConditionalGeneration": "lets the forward count positions",
    "IdeficsForVisionText2Text": "images",
    "InklingForConditionalGeneration": "images and audio",
    "Molmo2ForConditionalGeneration": "`mm_token_type_ids` of the prompt",
    "RoCBertForCausalLM": "shapes and pronunciations",
}

# Rotary embeddings that switch at the original length, where the method forgets the cache.
SWITCH = ("Phi3ForCausalLM", "Phi4MultimodalForCausalLM", "PhimoeForCausalLM")

REFUSED = {
    "CpmAntForCausalLM": "cpmant",
    "Kosmos2_5ForConditionalGeneration": "kosmos-2.5",
    "MllamaForConditionalGeneration": "mllama",
    "MusicgenForCausalLM": "musicgen_decoder",
    "MusicgenMelodyForCausalLM": "musicgen_melody_decoder",
    "OpenAIGPTLMHeadModel": "openai-gpt",
    "PaliGemmaForConditionalGeneration": "paligemma",
    "ReformerModelWithLMHead": "reformer",
    "XLMWithLMHeadModel": "xlm",
    "XLNetLMHeadModel": "xlnet",
}


def overriding() -> set[str]:
    """The installed text and image-text models with the method, but those whose state is refused anyway."""
    mappings = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    values = [value for mapping in mappings for value in mapping.values()]
    names = {name for value in values for name in ([value] if isinstance(value, str) else value)}
    classes = {name: getattr(transformers, name, GenerationMixin) for name in names}
    common = GenerationMixin.prepare_inputs_for_generation
    return {
        name
        for name, kind in classes.items()
        if getattr(kind, "prepare_inputs_for_generation", common) is not common
        and not getattr(kind, "_is_stateful", False)
    }


def test_every_override_has_its_place() -> None:
    """Every model with the method is known: a new one fails here until someone has read what its method does."""
    places = [*SAME_FOR_TEXT, *SWITCH, *REFUSED]
    assert len(places) == len(set(places))
    assert overriding() - set(places) == set()
    assert set(REFUSED.values()) == set(OWN_INPUTS)


TEXT: dict[str, Any] = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
VISION |= {"image_size": 28, "patch_size": 14}
KOSMOS = {"vocab_size": 120, "embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 4, "init_std": 0.3}
LLAMA = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "pad_token_id": 0}
LLAMA |= {"num_hidden_layers": 3, "cross_attention_layers": [1]}
EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_global_layers": 1}
EYES |= {"attention_heads": 4, "image_size": 28, "patch_size": 14, "vision_output_dim": 64}
IMAGE_MODELS: dict[str, dict[str, Any]] = {
    "paligemma": {
        "text_config": TEXT | {"model_type": "gemma"},
        "vision_config": VISION | {"model_type": "siglip_vision_model"},
        "projection_dim": 32,
        "image_token_id": 119,
    },
    "kosmos-2.5": {
        "text_config": KOSMOS | {"max_position_embeddings": 512},
        "vision_config": VISION | {"patch_embed_hidden_size": 32, "head_dim": 8},
    },
    "mllama": {
        "text_config": TEXT | LLAMA,
        "vision_config": EYES | {"intermediate_layers_indices": [0]},
        "image_token_index": 119,
    },
}
WIDTH = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 120, "initializer_range": 0.3}
TEXT_MODELS: dict[str, dict[str, Any]] = {
    "ctrl": WIDTH | {"dff": 64},
    "cpmant": TEXT | {"dim_head": 8, "dim_ff": 64, "prompt_length": 4},
    "openai-gpt": WIDTH,
    "reformer": TEXT
    | {"attn_layers": ["local", "local"], "attention_head_size": 8, "is_decoder": True}
    | {"axial_pos_embds": False},
    "roc_bert": TEXT | {"is_decoder": True, "pronunciation_vocab_size": 20, "shape_vocab_size": 20},
    "xlm": {"vocab_size": 120, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": True, "mask_token_id": 3},
    "xlnet": {"vocab_size": 120, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
}


def model_of(kind: str) -> Any:
    make = AutoModelForImageTextToText if kind in IMAGE_MODELS else AutoModelForCausalLM
    torch.manual_seed(0)
    model = make.from_config(AutoConfig.for_model(kind, **(IMAGE_MODELS | TEXT_MODELS)[kind])).eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("kind", ["ctrl", "roc_bert"])
def test_those_that_are_the_same_for_a_text(kind: str) -> None:
    """A text is plain `generate`'s."""
    model = model_of(kind)
    reference = plain(model, prompt(9), max_new_tokens=16)
    output = failfast(model, prompt(9), ScriptedDrafter(reference, [3, 0, 10, 1]), max_new_tokens=16)
    assert torch.equal(output, reference)


@pytest.mark.parametrize("kind", sorted({*IMAGE_MODELS, *TEXT_MODELS} & {*OWN_INPUTS}))
def test_those_that_are_refused(kind: str) -> None:
    """Refuses the target by name before the first token."""
    drafter = ScriptedDrafter(prompt(40))
    with pytest.raises(ValueError, match=f"`{kind}` target, whose|`{kind}` target, which"):
        failfast(model_of(kind), prompt(9), drafter, max_new_tokens=16)
    assert not drafter.sessions


@pytest.mark.parametrize("kind", ["kosmos-2.5", "mllama"])
def test_those_that_the_other_loop_takes(kind: str) -> None:
    """The error names `assisted_generate`, which writes plain `generate`'s text."""
    if kind == "mllama" and not COMPILES_ASSISTED:
        pytest.skip("transformers before 5.24 cannot crop this cache in its own assisted generation")
    model = model_of(kind)
    reference = plain(model, prompt(9), max_new_tokens=16)
    with pytest.raises(ValueError, match="`hf_failfast.assisted_generate` drafts for it"):
        failfast(model, prompt(9), ScriptedDrafter(reference), max_new_tokens=16)
    output = LOOPS["assisted"](model, prompt(9), ScriptedDrafter(reference, [3, 0, 10, 1]), max_new_tokens=16)
    assert torch.equal(output, reference)
