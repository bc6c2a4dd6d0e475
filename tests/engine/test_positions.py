"""What the engine reads from a config about positions."""

import inspect

import pytest
import transformers
from conftest import tiny_model
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_failfast.engine.positions import RopeChange, counted_from, position_table, rope_change

# Without positions, since recurrent and refused; and one that hands them on to its language model.
ELSEWHERE = ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm", "moss_transcribe_diarize")


@pytest.mark.filterwarnings("ignore")
def test_models_that_take_no_positions() -> None:
    """Knows every causal LM of the installed transformers whose forward takes no `position_ids`."""
    for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        try:
            forward = inspect.signature(getattr(transformers, name).forward).parameters
            config = AutoConfig.for_model(kind)
        except Exception:
            continue  # needs a package that is not installed, or a part of another model
        if "position_ids" not in forward and kind not in ELSEWHERE:
            assert counted_from(config) == 0, f"{kind} counts the slots of the cache"


def test_places_from_the_cache() -> None:
    """Llama 4 counts only with the temperature of its layers without rotary embeddings."""
    sizes = {"head_dim": 8, "num_local_experts": 2, "floor_scale": 16}
    assert counted_from(tiny_model("llama4_text", **sizes, no_rope_layers=[1, 0]).config) == 16
    assert counted_from(tiny_model("llama4_text", **sizes, no_rope_layers=[1, 1]).config) is None
    assert counted_from(tiny_model("llama").config) is None


def test_tables() -> None:
    """Positions end where they are learned, and only there."""
    assert position_table(tiny_model("gpt2").config) == 4096
    assert position_table(tiny_model("llama").config) is None
    assert position_table(tiny_model("bloom").config) is None
    assert position_table(tiny_model("xglm").config) is None
    assert position_table(tiny_model("gemma3_text", head_dim=8).config) is None


def test_changes() -> None:
    """Names the length up to which rotary embeddings are one set, for one layer type as for all."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    long = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32} | factors
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    by_type = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": dynamic}
    assert rope_change(tiny_model("llama").config) is None
    assert rope_change(tiny_model("llama", rope_parameters=long).config) == RopeChange(32, "longrope", False)
    assert rope_change(tiny_model("llama", rope_parameters=dynamic).config) == RopeChange(4095, "dynamic", False)
    gemma = tiny_model("gemma3_text", head_dim=8, rope_parameters=by_type)
    assert rope_change(gemma.config) == RopeChange(4095, "dynamic", False)
