"""Wrong or unsupported requests give a clear error or the target's own text, never a wrong one."""

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    DRAFTER_VOCAB_SIZE,
    DRAFTERS,
    MASK_ID,
    VOCAB_SIZE,
    assisted,
    drafter,
    failfast,
    plain,
    prompt,
    target,
    tiny_model,
)
from graph_support import Recorder
from scripted import ScriptedDrafter
from test_batch import LENGTHS, batch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, DynamicCache

import hf_failfast
from hf_failfast.compatibility import CACHE
from hf_failfast.engine.runner_pool import RunnerPool

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "num_beams": ({"num_beams": 4}, "`num_beams`=4"),
    "use_cache": ({"use_cache": False}, "`use_cache=False`"),
    "quantized cache": ({"cache_implementation": "quantized"}, "`cache_implementation`='quantized'"),
    "offloaded cache": ({"cache_implementation": "offloaded"}, "`cache_implementation`='offloaded'"),
    "offloaded static cache": ({"cache_implementation": "offloaded_static"}, "`cache_implementation`='offloaded_st"),
    "two caches": ({"cache_implementation": "static", CACHE: DynamicCache()}, "Passing both `cache_imp"),
    "constrained beams": ({"force_words_ids": [[3]], "num_beams": 2}, "`force_words_ids`"),
    "temperature": ({"do_sample": True, "temperature": -0.5}, "`temperature`"),
    "top_p": ({"do_sample": True, "top_p": 1.5}, "`top_p` must be between 0 and 1.0, but is 1.5"),
    "negative top_p": ({"do_sample": True, "top_p": -0.5}, "`top_p`"),
    "the target itself": ({"assistant_model": target("llama")}, "`assistant_model` must be a drafter .* LlamaFor"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 3}, "`prompt_lookup_num_tokens`"),
    "position_ids": ({"position_ids": torch.arange(9)[None]}, "`position_ids`"),
    "inputs_embeds": ({"inputs_embeds": torch.zeros(1, 9, 32)}, "`inputs_embeds`"),
    "assistant_tokenizer": ({"assistant_tokenizer": object()}, "`assistant_tokenizer`"),
    "penalty_alpha": ({"penalty_alpha": 0.6, "top_k": 4}, "`penalty_alpha`"),
    "dola": ({"dola_layers": "high"}, "`dola_layers`"),
    "unknown": ({"no_such_argument": 1}, "no_such_argument"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_requests_are_named(name: str) -> None:
    """Refuses every unsupported request with an error that names the argument."""
    options, message = REFUSED[name]
    arguments: dict[str, Any] = {"assistant_model": drafter("canvas"), "max_new_tokens": 3} | options
    with pytest.raises(ValueError, match=message):
        target("llama").generate(prompt(9), custom_generate="hf_failfast", **arguments)


def test_an_encoder_decoder_is_refused() -> None:
    """Refuses encoder-decoder targets and names `assisted_generate`, which takes them."""
    config = AutoConfig.for_model(
        "t5", vocab_size=VOCAB_SIZE, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    with pytest.raises(ValueError, match="Encoder-decoder targets .* `hf_failfast.assisted_generate"):
        failfast(AutoModelForSeq2SeqLM.from_config(config), prompt(9), drafter("canvas"), max_new_tokens=3)


def test_a_target_whose_state_slots_cannot_hold_is_refused() -> None:
    """Refuses targets with a recurrent state, which cannot be rolled back."""
    model = tiny_model("lfm2", layer_types=["conv", "full_attention"], conv_L_cache=3)
    with pytest.raises(ValueError, match="`lfm2` keeps .* cannot be rolled back.*`hf_failfast.assisted_generate`"):
        failfast(model, prompt(9), drafter("canvas"), max_new_tokens=3)


def test_a_prompt_longer_than_the_positions() -> None:
    """Refuses prompts longer than the target's learned positions."""
    model = tiny_model("gpt2", max_position_embeddings=32)
    with pytest.raises(ValueError, match="prompt of 33 tokens .* `max_position_embeddings`=32"):
        failfast(model, prompt(33), drafter("canvas", "qwen2"), max_new_tokens=3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_text_longer_than_the_positions(family: str) -> None:
    """Beyond the last position, rotary targets go on and learned ones raise IndexError, with and without drafts."""
    model, options = tiny_model(family, max_position_embeddings=32), {"max_new_tokens": 30}
    if family == "gpt2":
        for generate in (plain, functools.partial(failfast, drafter=drafter("canvas"))):
            with pytest.raises(IndexError, match="out of range"):
                generate(model, prompt(20), **options)
    else:
        expected = plain(model, prompt(20), **options)
        assert torch.equal(failfast(model, prompt(20), drafter("canvas_shift", "llama"), **options), expected)


def test_a_batch_longer_than_learned_positions() -> None:
    """A row that outgrows learned positions raises IndexError in a batch as alone, instead of going on at the last."""
    model = tiny_model("gpt2", max_position_embeddings=32)
    ids, mask = batch()
    for generate in (plain, functools.partial(failfast, drafter=drafter("canvas"))):
        with pytest.raises(IndexError, match="out of range"):
            generate(model, ids, attention_mask=mask, max_new_tokens=12)


@pytest.mark.parametrize("kind", ["canvas_shift", "bidirectional"])
def test_a_drafter_near_its_last_position(kind: str, tmp_path: Path) -> None:
    """A row that fills a drafter's learned positions keeps no other row from being drafted for."""
    model, (ids, mask) = tiny_model("llama"), batch()
    short = copy.deepcopy(target("gpt2"))
    short.config.max_position_embeddings = 32
    short.transformer.wpe.weight.data = short.transformer.wpe.weight.data[:32]
    short.resize_token_embeddings(DRAFTER_VOCAB_SIZE, mean_resizing=False)
    short.save_pretrained(tmp_path)
    body = hf_failfast.load_drafter(str(tmp_path), mask_token_id=MASK_ID, dtype=torch.float32, **DRAFTERS[kind])
    output = failfast(
        model,
        ids,
        body,
        attention_mask=mask,
        max_new_tokens=24,
        confidence_threshold=0.0,
        return_dict_in_generate=True,
    )
    references = [plain(model, prompt(length), max_new_tokens=24) for length in LENGTHS]
    expected = [reference[0, length:].tolist() for reference, length in zip(references, LENGTHS, strict=True)]
    assert output.sequences[:, ids.shape[1] :].tolist() == expected
    assert output.speculation.drafter_errors == 0


@pytest.mark.parametrize("kind", ["llama4_text", "gpt_neo", "bart"])
def test_places_counted_from_the_cache_in_a_batch(kind: str) -> None:
    """Refuses batches whose rows would take their places from the longest one; alone, the text is plain's."""
    options: dict[str, Any] = {"head_dim": 8, "num_local_experts": 2, "no_rope_layers": [1, 0], "floor_scale": 16}
    if kind == "gpt_neo":
        options = {"num_layers": 2, "num_heads": 4, "window_size": 8, "attention_types": [[["global", "local"], 1]]}
    if kind == "bart":
        options = {
            "d_model": 32,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 64,
            "init_std": 0.3,
        }
    model = tiny_model(kind, **options)
    with pytest.raises(ValueError, match=f"batch of 2 prompts with `max_length`=12 for `{kind}`"):
        failfast(model, prompt(9).repeat(2, 1), drafter("canvas"), max_new_tokens=3)
    for runner in (RunnerPool("eager"), RunnerPool("cuda_graphs", Recorder())):
        reference = plain(model, prompt(9), max_new_tokens=40)
        script = ScriptedDrafter(reference, [3, 0, 10, 1])
        script.runners = runner
        assert torch.equal(failfast(model, prompt(9), script, max_new_tokens=40), reference)


def test_a_text_that_is_read_again_in_transformers_loop() -> None:
    """Refuses Phi-3 beyond the original length in transformers' loop, which keeps the old K/V, and names ours."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "partial_rotary_factor": 1.0}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32} | factors
    model = tiny_model("phi3", original_max_position_embeddings=32, rope_parameters=rope)
    with pytest.raises(ValueError, match='`phi3`, which reads .*=32: use `custom_generate="hf_failfast"`'):
        assisted(model, prompt(9), drafter("canvas"), max_new_tokens=30)
    assert torch.equal(
        assisted(model, prompt(9), drafter("canvas"), max_new_tokens=12), plain(model, prompt(9), max_new_tokens=12)
    )


def forgetful(model: Any) -> Any:
    """The model, its last layer without a cache, as layers are that train with gradient checkpointing."""
    layer = model.model.layers[-1]
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: forward(*args, **(kwargs | {CACHE: None}))
    return model


def test_a_model_that_stores_nothing() -> None:
    """Refuses a forward that leaves out a layer, before the first token, and says what it may be."""
    model = forgetful(tiny_model("llama"))
    with pytest.raises(ValueError, match=r"stores nothing in the cache \(here in 1 of 2 .*gradient checkpointing"):
        failfast(model, prompt(9), drafter("canvas"), max_new_tokens=3)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_gradient_checkpointing_while_training() -> None:
    """Between training steps the text is plain's, or refused where transformers drops the cache."""
    model = tiny_model("llama")
    model.gradient_checkpointing_enable()
    model.train()
    reference = plain(model, prompt(9), max_new_tokens=12)
    try:
        output = failfast(model, prompt(9), ScriptedDrafter(reference), max_new_tokens=12)
    except ValueError as error:
        assert "gradient checkpointing" in str(error)
    else:
        assert torch.equal(output, reference)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("bert", {"is_decoder": False}), ("gemma3_text", {"head_dim": 8, "use_bidirectional_attention": True})],
)
def test_tokens_that_see_later_ones(kind: str, options: dict[str, Any]) -> None:
    """Refuses targets whose tokens see later ones: a draft would change what comes before it."""
    with pytest.raises(ValueError, match=f"`{kind}` whose tokens see later ones"):
        failfast(tiny_model(kind, **options), prompt(9), drafter("canvas"), max_new_tokens=3)
    if kind == "bert":
        model = tiny_model(kind, is_decoder=True)
        reference = plain(model, prompt(9), max_new_tokens=20)
        script = ScriptedDrafter(reference, [3, 0, 10, 1])
        assert torch.equal(failfast(model, prompt(9), script, max_new_tokens=20), reference)


def test_a_window_that_only_the_cache_makes() -> None:
    """Refuses Moshi beyond its window, where plain `generate` has no mask for it and forgets what its cache drops."""
    model = tiny_model("moshi", ffn_dim=64, sliding_window=16)
    with pytest.raises(
        ValueError, match="`max_length`=17 for a `moshi` with `sliding_window`=16, which it has no mask"
    ):
        failfast(model, prompt(9), drafter("canvas"), max_new_tokens=8)


def test_positions_that_leave_out_padding_ids() -> None:
    """Refuses TrOCR's sines: a drafted padding id would shift the positions of what follows it."""
    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    model = tiny_model("trocr", **sizes, use_learned_position_embeddings=False, pad_token_id=1)
    with pytest.raises(ValueError, match="`trocr` with `use_learned_position_embeddings=False`, whose positions"):
        failfast(model, prompt(9), drafter("canvas"), max_new_tokens=8)


def test_a_model_without_a_cache() -> None:
    """Refuses models that take no cache, and names it."""
    model = tiny_model("openai-gpt", n_positions=64)
    with pytest.raises(ValueError, match=f"(`{CACHE}`|stores nothing in the cache|has no cache)"):
        failfast(model, prompt(9), drafter("canvas"), max_new_tokens=3)


def test_an_empty_prompt() -> None:
    """Refuses empty prompts: they have no row that predicts the first token."""
    with pytest.raises(ValueError, match="[Ee]mpty prompt"):
        failfast(target("llama"), torch.zeros(1, 0, dtype=torch.long), drafter("canvas"), max_new_tokens=3)


def test_a_mask_that_hides_everything_is_refused() -> None:
    """Refuses an attention mask that hides every token."""
    with pytest.raises(ValueError, match="`attention_mask`|empty prompt"):
        failfast(
            target("llama"),
            prompt(9),
            drafter("canvas"),
            attention_mask=torch.zeros(1, 9, dtype=torch.long),
            max_new_tokens=3,
        )


def test_no_prompt_but_a_start_token() -> None:
    """Without a prompt, drafted generation starts from the start token, as plain `generate` does."""
    model = tiny_model("llama", bos_token_id=3)
    reference = model.generate(do_sample=False, max_new_tokens=12)
    output = model.generate(
        do_sample=False,
        max_new_tokens=12,
        assistant_model=ScriptedDrafter(reference),
        custom_generate="hf_failfast",
    )
    assert torch.equal(output, reference)


def test_a_batch_needs_masks() -> None:
    """Refuses batches with an attention implementation that takes no mask."""
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="batch of 2 prompts with `attn_implementation`='flash_attention_2'"):
        failfast(model, prompt(9).repeat(2, 1), drafter("canvas"), max_new_tokens=3)


@pytest.mark.parametrize("kind", ["bloom", "falcon"])
def test_alibi_in_a_batch(kind: str) -> None:
    """Refuses batches for targets with ALiBi, which take masks (batch, length) only; one prompt works."""
    model = tiny_model(kind, **({"alibi": True, "num_kv_heads": 4, "multi_query": False} if kind == "falcon" else {}))
    with pytest.raises(ValueError, match=f"batch of 2 prompts for `{kind}` with ALiBi"):
        failfast(model, prompt(9).repeat(2, 1), drafter("canvas"), max_new_tokens=3)
    output = failfast(model, prompt(9), drafter("canvas_shift", "qwen2"), max_new_tokens=12)
    assert torch.equal(output, plain(model, prompt(9), max_new_tokens=12))


def test_a_cache_of_another_batch() -> None:
    """Refuses a cache of one row for a batch of two."""
    model = target("llama")
    options = {"max_new_tokens": 3, "return_dict_in_generate": True}
    cache = failfast(model, prompt(9), drafter("canvas"), **options)[CACHE]
    with pytest.raises(ValueError, match=f"batch of 2 prompts for `{CACHE}` of 1"):
        failfast(model, prompt(20).repeat(2, 1), drafter("canvas"), **{CACHE: cache}, max_new_tokens=3)
