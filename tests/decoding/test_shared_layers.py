"""Targets whose last layers read the K/V that earlier ones have stored (Gemma 3n, Gemma 4)."""

import copy
from typing import Any

import pytest
import torch
from conftest import VOCAB_SIZE, failfast, plain, prompt
from graph_support import Recorder
from scripted import ScriptedDrafter
from test_batch import LENGTHS, batch, scripts
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from hf_failfast.compatibility import CACHE
from hf_failfast.engine.runner_pool import RunnerPool

NEW = 30  # beyond the sliding window
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "sliding_window": 16,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
KINDS: dict[str, dict[str, Any]] = {
    "gemma3n_text": {"laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 6},
    "gemma4_text": {"global_head_dim": 8, "use_double_wide_mlp": True},
}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **SIZES, **KINDS[request.param])
    return AutoModelForCausalLM.from_config(config).eval()


def references(model: PreTrainedModel) -> list[torch.Tensor]:
    return [plain(model, prompt(length), max_new_tokens=NEW + 20) for length in LENGTHS]


@pytest.mark.parametrize("length", [1, 9, 40])
def test_one_prompt(model: PreTrainedModel, length: int) -> None:
    """The text and the logits are plain `generate`'s."""
    options = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_logits": True}
    reference = plain(model, prompt(length), **options)
    script = ScriptedDrafter(plain(model, prompt(length), max_new_tokens=NEW + 20), [3, 0, 10, 1])
    output = failfast(model, prompt(length), script, **options)
    assert torch.equal(output.sequences, reference.sequences)
    assert output.speculation.accepted > 10
    torch.testing.assert_close(torch.cat(output.logits), torch.cat(reference.logits), atol=1e-3, rtol=1e-3)


def test_a_batch(model: PreTrainedModel) -> None:
    """Rows of different length get the text they get alone, beyond the sliding window too."""
    ids, mask = batch()
    texts = references(model)
    output = failfast(model, ids, scripts(texts, [10, 0, 3], [0], [5, 2]), attention_mask=mask, max_new_tokens=NEW)
    for row, (text, length) in enumerate(zip(texts, LENGTHS, strict=True)):
        assert output[row, ids.shape[1] :].tolist() == text[0, length : length + NEW].tolist()


def test_a_static_cache(model: PreTrainedModel) -> None:
    """With a static cache the text is the same."""
    expected = plain(model, prompt(23), max_new_tokens=NEW)
    script = ScriptedDrafter(expected, [3, 0, 10])
    output = failfast(model, prompt(23), script, max_new_tokens=NEW, cache_implementation="static")
    assert torch.equal(output, expected)


def test_a_replayed_forward(model: PreTrainedModel) -> None:
    """Captured forwards write the same text."""
    expected = plain(model, prompt(23), max_new_tokens=NEW)
    script, recorder = ScriptedDrafter(expected, [3, 0, 10]), Recorder()
    script.runners = RunnerPool("cuda_graphs", recorder)
    assert torch.equal(failfast(model, prompt(23), script, max_new_tokens=NEW), expected)
    assert recorder.captures > 0


def test_hidden_states_and_attentions(model: PreTrainedModel) -> None:
    """Hidden states are plain `generate`'s, or refused where a layer puts out several; attentions are refused."""
    options = {"max_new_tokens": 6, "return_dict_in_generate": True}
    script = ScriptedDrafter(plain(model, prompt(9), max_new_tokens=NEW))
    if model.config.model_type == "gemma3n_text":
        with pytest.raises(ValueError, match="`output_hidden_states` of `gemma3n_text`"):
            failfast(model, prompt(9), script, output_hidden_states=True, **options)
    else:
        output = failfast(model, prompt(9), script, output_hidden_states=True, **options).hidden_states
        expected = plain(model, prompt(9), output_hidden_states=True, **options).hidden_states
        for ours, theirs in zip(output, expected, strict=True):
            torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), atol=1e-3, rtol=1e-3)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=f"`output_attentions` of `{model.config.model_type}`, whose last layers"):
        failfast(eager, prompt(9), script, output_attentions=True, **options)


@pytest.mark.parametrize("given", [False, True])
def test_caches_continue(model: PreTrainedModel, given: bool) -> None:
    """The cache of a drafted call goes on in plain and drafted ones, and that of a plain call in a drafted one."""
    text, whole = prompt(23), plain(model, prompt(23), max_new_tokens=NEW)
    whole = torch.cat([whole, prompt(5)], dim=1)
    expected = plain(model, whole, max_new_tokens=NEW)
    script = ScriptedDrafter(plain(model, text, max_new_tokens=NEW + 20), [3, 0, 10])

    def first(generate: Any, *drafter: Any) -> Any:
        options = {CACHE: DynamicCache(config=model.config)} if given else {}
        output = generate(model, text, *drafter, max_new_tokens=NEW, return_dict_in_generate=True, **options)
        assert output[CACHE].get_seq_length() == output.sequences.shape[1] - 1
        return output[CACHE]

    second = ScriptedDrafter(plain(model, whole, max_new_tokens=NEW + 20), [3, 0, 10])
    assert torch.equal(plain(model, whole, max_new_tokens=NEW, **{CACHE: first(failfast, script)}), expected)
    for cache in (first(plain), first(failfast, script)):
        assert torch.equal(failfast(model, whole, second, max_new_tokens=NEW, **{CACHE: cache}), expected)
