"""A second turn continues from the cache of the first, as in plain `generate`."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

import hf_failfast
from hf_failfast.compatibility import CACHE

MASK_ID = 63


@pytest.fixture(scope="module", params=["llama", "mistral", "gpt2", "qwen3"])
def pair(request, tmp_path_factory):
    """(target, drafter of the same weights); Mistral's window is shorter than the texts."""
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": MASK_ID + 1}
    settings |= {"initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if request.param != "gpt2":
        settings |= {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    if request.param == "mistral":
        settings["sliding_window"] = 16
    target = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **settings)).eval()
    folder = tmp_path_factory.mktemp("drafter")
    target.save_pretrained(folder)
    return target, hf_failfast.load_drafter(folder, attention="causal_canvas", shift=1, mask_token_id=MASK_ID)


def tokens(length, seed):
    return torch.randint(MASK_ID, (1, length), generator=torch.Generator().manual_seed(seed))


def plain(pair, ids, **kwargs):
    return pair[0].generate(ids, max_new_tokens=20, do_sample=False, **kwargs)


def drafted(pair, ids, **kwargs):
    return plain(pair, ids, assistant_model=pair[1], custom_generate="hf_failfast", **kwargs)


@pytest.mark.parametrize("first", [plain, drafted])
@pytest.mark.parametrize("second", [plain, drafted])
def test_a_second_turn_continues_either_way(pair, first, second):
    """Both turns by either method, over one cache, equal two plain turns over another."""
    reference_cache, cache = DynamicCache(config=pair[0].config), DynamicCache(config=pair[0].config)
    reference = plain(pair, tokens(24, 0), **{CACHE: reference_cache})
    ids = first(pair, tokens(24, 0), **{CACHE: cache})
    assert ids.tolist() == reference.tolist()
    assert cache.get_seq_length() == reference_cache.get_seq_length() == ids.shape[1] - 1

    turn = torch.cat([ids, tokens(9, 1)], dim=1)
    reference = plain(pair, turn, **{CACHE: reference_cache})
    assert second(pair, turn, **{CACHE: cache}).tolist() == reference.tolist()
    assert cache.get_seq_length() == reference_cache.get_seq_length()
    for layer, other in zip(cache.layers, reference_cache.layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys, atol=1e-4, rtol=1e-4)


def test_the_second_turn_does_not_read_the_first_again(pair):
    cache = DynamicCache(config=pair[0].config)
    ids = drafted(pair, tokens(24, 0), **{CACHE: cache})
    fed = []
    hook = pair[0].register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    drafted(pair, torch.cat([ids, tokens(9, 1)], dim=1), **{CACHE: cache}, chunk_length=4, max_draft_length=4)
    hook.remove()
    assert fed[0] == 1 + 9 + 4, "the last token of the first turn, the new ones, the draft"


def test_left_padding_stays_hidden(pair):
    ids, padding = tokens(12, 0), 5
    padded = torch.cat([torch.zeros(1, padding, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(padded.shape[1]) >= padding).long()[None]
    cache = DynamicCache(config=pair[0].config)
    first = drafted(pair, padded, attention_mask=mask, **{CACHE: cache})
    turn = torch.cat([first, tokens(4, 1)], dim=1)
    mask = (torch.arange(turn.shape[1]) >= padding).long()[None]
    expected = plain(pair, turn[:, padding:])[:, turn.shape[1] - padding :]
    for method in (drafted, plain):
        answer = method(pair, turn, attention_mask=mask, **{CACHE: cache})[:, turn.shape[1] :]
        assert answer.tolist() == expected.tolist()
        cache = drafted(pair, padded, attention_mask=mask[:, : padded.shape[1]], return_dict_in_generate=True)
        cache = cache[CACHE]


class CountingCache(DynamicCache):
    """A subclass that keeps its K/V as its parent does."""

    name = "mine"


def caches(pair, kind):
    if kind == "static":
        return StaticCache(config=pair[0].config, max_cache_len=90)
    return CountingCache(config=pair[0].config) if kind == "subclass" else DynamicCache()


@pytest.mark.parametrize("kind", ["static", "subclass", "without config"])
@pytest.mark.parametrize("first", [plain, drafted])
@pytest.mark.parametrize("second", [plain, drafted])
def test_other_caches_continue_either_way(pair, first, second, kind):
    """Static caches, subclasses and caches without config are filled and continued as in plain `generate`."""
    cache = caches(pair, kind)
    reference = plain(pair, tokens(24, 0))
    ids = first(pair, tokens(24, 0), **{CACHE: cache})
    assert ids.tolist() == reference.tolist()
    assert cache.get_seq_length() == ids.shape[1] - 1
    turn = torch.cat([ids, tokens(9, 1)], dim=1)
    assert second(pair, turn, **{CACHE: cache}).tolist() == plain(pair, turn).tolist()
    assert cache.get_seq_length() == turn.shape[1] + 19


@pytest.mark.parametrize("second", [plain, drafted])
def test_cache_implementation_static(pair, second):
    """`cache_implementation="static"` returns a `StaticCache` with plain `generate`'s K/V."""
    output = drafted(pair, tokens(24, 0), cache_implementation="static", return_dict_in_generate=True)
    reference = plain(pair, tokens(24, 0), cache_implementation="static", return_dict_in_generate=True)
    assert output.sequences.tolist() == reference.sequences.tolist()
    cache = output[CACHE]
    assert type(cache) is StaticCache
    assert cache.get_seq_length() == 43
    for layer, other in zip(cache.layers, reference[CACHE].layers, strict=True):
        assert type(layer) is type(other)
        torch.testing.assert_close(layer.keys, other.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer.values, other.values, atol=1e-4, rtol=1e-4)


def test_a_batch_in_a_static_cache(pair):
    """A left-padded batch in a static cache continues as plain `generate` does."""
    ids = torch.cat([tokens(12, 0), tokens(12, 1)])
    ids[1, :5] = 0
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    cache = StaticCache(config=pair[0].config, max_cache_len=90)
    first = drafted(pair, ids, attention_mask=mask, **{CACHE: cache})
    assert first.tolist() == plain(pair, ids, attention_mask=mask).tolist()
    turn = torch.cat([first, torch.cat([tokens(4, 2), tokens(4, 3)])], dim=1)
    mask = torch.nn.functional.pad(mask, (0, turn.shape[1] - mask.shape[1]), value=1)
    expected = plain(pair, turn, attention_mask=mask)
    assert drafted(pair, turn, attention_mask=mask, **{CACHE: cache}).tolist() == expected.tolist()


class Evicting(DynamicCache):
    def update(self, keys, values, *args, **kwargs):
        return super().update(keys[:, :, -1:], values[:, :, -1:], *args, **kwargs)


def test_caches_that_cannot_be_continued_are_named(pair):
    cache = DynamicCache(config=pair[0].config)
    ids = drafted(pair, tokens(24, 0), **{CACHE: cache})
    with pytest.raises(ValueError, match=f"`{CACHE}` that hold 43"):
        drafted(pair, ids[:, -5:], **{CACHE: cache})
    with pytest.raises(ValueError, match=f"Evicting as `{CACHE}`"):
        drafted(pair, ids, **{CACHE: Evicting(config=pair[0].config)})


def test_a_static_cache_that_is_too_small_or_of_another_batch(pair):
    """Refuses a static cache with too few slots or of another batch size; an exact fit works."""
    if any(layer.is_sliding for layer in StaticCache(config=pair[0].config, max_cache_len=9).layers):
        pytest.skip("a window holds any text")
    with pytest.raises(ValueError, match=f"StaticCache as `{CACHE}` of 42 slots .* `max_length`=44"):
        drafted(pair, tokens(24, 0), **{CACHE: StaticCache(config=pair[0].config, max_cache_len=42)})
    fits = StaticCache(config=pair[0].config, max_cache_len=43)
    drafted(pair, tokens(24, 0), **{CACHE: fits})
    with pytest.raises(ValueError, match=f"batch of 2 prompts for `{CACHE}` of 1"):
        drafted(pair, tokens(24, 0).repeat(2, 1), **{CACHE: fits})
