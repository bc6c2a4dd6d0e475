"""Exact forwards: a token's logits and K/V are the same bits in a forward of many tokens as alone."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
import torch
from conftest import VOCAB_SIZE, drafter, failfast, plain, prompt, quick_first, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedDrafter
from torch.nn.functional import gelu, linear, scaled_dot_product_attention, silu
from transformers import PreTrainedModel

import hf_failfast
from hf_failfast import FailFastConfig, exact_forwards, prepack
from hf_failfast.engine.exact import attention, operations, products
from hf_failfast.engine.exact.forwards import ExactRunner
from hf_failfast.engine.exact.operations import EachAlone, NotExact
from hf_failfast.engine.exact.products import BASE, Orders, Shape, Unalike
from hf_failfast.engine.runner import EagerRunner, Forward
from hf_failfast.engine.runner_pool import RunnerPool
from hf_failfast.engine.slot_cache import SlotCache
from hf_failfast.engine.window import Window
from hf_failfast.measure.no_drafts import NoDrafts

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Widths that fill vectors and widths that do not; heads in groups, and each with K/V of its own.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, wider": ("llama", {"hidden_size": 192, "intermediate_size": 500, "num_attention_heads": 6}),
    "mistral with a window": ("mistral", {"sliding_window": 16}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gpt2": ("gpt2", {}),
    "phi": ("phi", {}),
    "olmo": ("olmo", {}),
    "gemma3": ("gemma3_text", {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}),
}


def model_of(name: str, dtype: torch.dtype) -> PreTrainedModel:
    model_type, options = MODELS[name]
    return tiny_model(model_type, **options).to(dtype)


def forward(runner: EagerRunner, cache: SlotCache, ids: torch.Tensor, start: int) -> Forward:
    with torch.no_grad():
        return runner.run(Window(ids, [start] * len(ids), ids.shape[1]), cache)


def read(runner: EagerRunner, ids: torch.Tensor, widths: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The logits and K/V of ids that are read in forwards of these widths."""
    cache, start, logits = runner.new_cache(ids.shape[1], len(ids)), 0, []
    for width in widths:
        logits.append(forward(runner, cache, ids[:, start : start + width], start).outputs[0])
        start += width
    kv = [states[:, :, :start] for layer in cache.layers for states in (layer.keys, layer.values)]
    return torch.cat(logits, dim=1), kv


def differs(
    model: PreTrainedModel, ids: torch.Tensor, widths: list[int], kind: type[EagerRunner] = ExactRunner
) -> bool:
    """Whether anything depends on how the ids are cut into forwards."""
    logits, kv = read(kind(model), ids, widths)
    expected, expected_kv = read(kind(model), ids, [1] * ids.shape[1])
    same = [torch.equal(logits, expected), *map(torch.equal, kv, expected_kv)]
    return not all(same)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_token_is_computed_as_if_alone(name: str, dtype: torch.dtype) -> None:
    """However a text is cut into forwards, logits and K/V are those of one token at a time, bit for bit."""
    model = model_of(name, dtype)

    @settings(max_examples=3)
    @given(st.lists(st.integers(1, 21), min_size=1, max_size=2), st.integers(1, 2), st.integers(0, 10**6))
    def check(widths: list[int], num_rows: int, seed: int) -> None:
        ids = torch.randint(VOCAB_SIZE, (num_rows, sum(widths)), generator=torch.Generator().manual_seed(seed))
        assert not differs(model, ids, widths)

    check()


def test_ordinary_forwards_are_not_exact() -> None:
    """The check above finds what it looks for in forwards that are not exact."""
    model = model_of("llama, wider", torch.float32)
    assert differs(model, prompt(40), [30, 10], EagerRunner)
    assert not differs(model, prompt(40), [30, 10])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_a_block_of_keys_ends(dtype: torch.dtype) -> None:
    """A window that reaches into the next block of keys changes nothing for those before it."""
    model = model_of("llama", dtype)
    ids = prompt(attention.KEYS + 8)
    tail = [1] * 16
    whole, _ = read(ExactRunner(model), ids, [attention.KEYS - 8, 16])
    single, _ = read(ExactRunner(model), ids, [attention.KEYS - 8, *tail])
    assert torch.equal(whole, single)


def test_rows_of_different_length() -> None:
    """In a batch of texts of different length each gets what it gets alone."""
    model = model_of("qwen2", torch.bfloat16)
    runner, lengths = ExactRunner(model), [5, 23]
    ids = prompt(40)
    both = runner.new_cache(40, 2)
    forward(runner, both, ids[:, :23].repeat(2, 1), 0)
    both.rollback(lengths)
    tails = torch.cat([ids[:, length : length + 7] for length in lengths])
    with torch.no_grad():
        found = runner.run(Window(tails, lengths, 7), both).outputs[0]
    for row, length in enumerate(lengths):
        expected, _ = read(runner, ids[:, : length + 7], [1] * (length + 7))
        assert torch.equal(found[row], expected[0, length:])


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", quick_first(["qwen2", "gpt2", "llama, wider"], 2))
def test_text(name: str, dtype: torch.dtype, is_packed: bool) -> None:
    """Whatever is drafted, the text is the one of plain `generate` with exact forwards, and of the loop without
    drafts; packed weights, whose products differ, have a text of their own that holds as well."""
    model = model_of(name, dtype)
    if is_packed:
        try:
            packed = prepack(model)
        except ValueError:
            pytest.skip("nothing to pack in this dtype here")
    with exact_forwards(model):
        reference = plain(model, prompt(19), max_new_tokens=60)
    without = NoDrafts(RunnerPool("eager"))
    assert torch.equal(failfast(model, prompt(19), without, max_new_tokens=60, exact=True), reference)
    for lengths in ([0], [3, 0, 10, 1], [10], [7, 2]):
        script = ScriptedDrafter(reference, lengths)
        output = failfast(
            model, prompt(19), script, max_new_tokens=60, exact=True, return_dict_in_generate=True, output_logits=True
        )
        assert torch.equal(output.sequences, reference)
        assert output.speculation.runner == "eager, exact"
    if is_packed:
        packed.undo()


def test_logits_of_a_drafted_text() -> None:
    """Not only the tokens: the logits are those of plain `generate` with exact forwards, bit for bit."""
    model = model_of("llama, wider", torch.bfloat16)
    options = {"max_new_tokens": 30, "return_dict_in_generate": True, "output_logits": True}
    with exact_forwards(model):
        expected = plain(model, prompt(11), **options)
    script = ScriptedDrafter(expected.sequences, [4, 0, 9])
    found = failfast(model, prompt(11), script, exact=True, **options)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, expected.logits, strict=True))


def test_a_real_drafter_in_a_batch() -> None:
    """A drafter that is right and wrong gives each row of a batch the text that it has alone."""
    model = model_of("llama", torch.bfloat16)
    ids = torch.randint(VOCAB_SIZE, (3, 12), generator=torch.Generator().manual_seed(5))
    proposer = drafter("canvas_shift", "llama")
    found = failfast(model, ids, proposer, max_new_tokens=40, exact=True)
    with exact_forwards(model):
        for row in range(3):
            assert torch.equal(found[row : row + 1], plain(model, ids[row : row + 1], max_new_tokens=40))


def test_the_context_ends() -> None:
    """Afterwards the model is as it was, after an error, too; contexts nest."""
    model = model_of("llama", torch.float32)
    with exact_forwards(model):
        with exact_forwards(model):
            inner = model(prompt(5)).logits
        assert "forward" in vars(model)
        assert torch.equal(model(prompt(5)).logits, inner)
    assert "forward" not in vars(model)
    with pytest.raises(IndexError), exact_forwards(model):
        model(torch.tensor([[VOCAB_SIZE]]))
    assert "forward" not in vars(model)
    assert not operations._HERE.is_active
    assert torch.overrides._get_current_function_mode() is None


# Products


def orders_of(multiply: Callable[[torch.Tensor], torch.Tensor], count: int, shape: Shape | None = None) -> int:
    shape = shape or Shape("test", 40, 96, False, torch.float32, 1)
    return Orders().call_size(shape, count, lambda weight, bias: lambda rows: multiply_by(rows, weight, multiply))


def multiply_by(rows: torch.Tensor, weight: torch.Tensor, order: Any) -> torch.Tensor:
    return order(rows[:, None] * weight)


def forwards(terms: torch.Tensor) -> torch.Tensor:
    return reduce(torch.add, terms.unbind(-1))


def backwards(terms: torch.Tensor) -> torch.Tensor:
    return forwards(terms.flip(-1))


def test_numbers_of_rows_that_are_added_in_another_order() -> None:
    """They are not used: the next number that is added as `BASE` rows are takes their place."""
    assert orders_of(forwards, 1) == 1
    assert orders_of(lambda terms: backwards(terms) if len(terms) < 3 else forwards(terms), 1) == 3
    assert orders_of(lambda terms: backwards(terms) if len(terms) < 3 else forwards(terms), 5) == 5
    assert orders_of(lambda terms: backwards(terms) if len(terms) < BASE else forwards(terms), 2) == BASE


def test_a_row_whose_sum_depends_on_its_place() -> None:
    """Such a product cannot be had exactly."""

    def by_place(terms: torch.Tensor) -> torch.Tensor:
        return torch.cat([forwards(terms[:-1]), backwards(terms[-1:])])

    with pytest.raises(Unalike, match="a weight of 96 x 40"):
        orders_of(by_place, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("width", [32, 96, 333])
def test_the_terms_of_a_trial_cancel(width: int, dtype: torch.dtype, has_bias: bool) -> None:
    """The exact sums are the biases, so that what is left is rounding, and an order shows in nearly all of it."""
    rows, weight, bias = products.cancelling(Shape("test", 700, width, has_bias, dtype, 1))
    exact = rows.double() @ weight.double().t()
    assert exact.abs().max() < 1e-9
    found = linear(rows, weight, bias)
    assert found.isfinite().all()
    terms = rows.float()[:, None, :] * weight.float()[:64]
    first, second = (order(terms).to(dtype) for order in (forwards, backwards))
    assert (first != second).float().mean() > 0.6


# Functions


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 7, 63, 64, 100, 5000])
def test_functions_run_on_whole_vectors(count: int, dtype: torch.dtype) -> None:
    """A number's result does not depend on where it stands."""
    values = torch.rand(9 * count, generator=torch.Generator().manual_seed(0)).to(dtype)
    with EachAlone():
        for function in (silu, torch.exp, torch.tanh, torch.cos, torch.sigmoid, gelu, torch.rsqrt, torch.sqrt):
            alone = torch.cat([function(part) for part in values.split(count)])
            assert torch.equal(function(values), alone)
            assert torch.equal(function(values.reshape(9, count).t()).t().flatten(), alone)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 7, 100])
def test_arithmetic_is_rounded_in_one_way(count: int, dtype: torch.dtype) -> None:
    """What runs as it is gives a number's result wherever it stands, too."""
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.rand(9 * count, generator=generator).to(dtype) + 0.1 for _ in range(2)]
    operations_of_two = (torch.add, torch.sub, torch.rsub, torch.mul, torch.div, torch.maximum)
    operations_of_one = (torch.reciprocal, torch.square, torch.sqrt, torch.neg, lambda x: 0.3 * x, lambda x: 3 / x)
    with EachAlone():
        for function in operations_of_two:
            alone = torch.cat([function(a, b) for a, b in zip(*(each.split(count) for each in pairs), strict=True)])
            assert torch.equal(function(*pairs), alone)
        for each in operations_of_one:
            assert torch.equal(each(pairs[0]), torch.cat([each(part) for part in pairs[0].split(count)]))


@pytest.mark.parametrize("group", [1, 3])
def test_attention_is_that_of_torch(group: int) -> None:
    """Up to rounding, with and without a mask, causal or not."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 2 * group, 5, 16, generator=generator)
    key, value = torch.randn(2, 2, 2, 70, 16, generator=generator)
    visible = torch.rand(2, 1, 5, 70, generator=generator) < 0.7
    options = {"scale": 0.3, "enable_gqa": group > 1}
    for masks in ({"attn_mask": visible}, {}, {"attn_mask": visible[0, 0]}):
        found = attention.attend(query, key, value, **masks, **options)
        torch.testing.assert_close(found, scaled_dot_product_attention(query, key, value, **masks, **options))
    square = {"is_causal": True, "enable_gqa": group > 1}
    found = attention.attend(query, key[:, :, :5], value[:, :, :5], **square)
    torch.testing.assert_close(found, scaled_dot_product_attention(query, key[:, :, :5], value[:, :, :5], **square))


# Refusals


def refused(model: PreTrainedModel, **options: Any) -> str:
    script = ScriptedDrafter(prompt(40), [3])
    with pytest.raises(ValueError, match="exact") as caught:
        failfast(model, prompt(8), script, max_new_tokens=4, exact=True, **options)
    return str(caught.value)


def test_refusals() -> None:
    """What cannot be exact is refused by name, before the first token."""
    llama = model_of("llama", torch.float32)
    assert "`attn_implementation`='eager'" in refused(tiny_model("gemma2"))
    assert "float64" in refused(tiny_model("llama").double())
    assert "`draft_tree` is 8" in refused(llama, draft_tree=8)
    assert "`self_selection` is 2" in refused(llama, self_selection=2)
    with pytest.raises(ValueError, match="`exact` must be True or False, but is 1"):
        FailFastConfig(exact=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`exact`=True is not possible with `assisted_generate`"):
        hf_failfast.assisted_generate(llama, prompt(8), assistant_model=ScriptedDrafter(prompt(40), [3]), exact=True)
    with pytest.raises(ValueError, match="on meta"):
        exact_forwards(tiny_model("llama").to("meta"))


def test_an_operation_that_is_not_known_is_refused() -> None:
    """The mixture of experts multiplies numbers of rows of its own choice."""
    model = tiny_model("mixtral", num_local_experts=2, num_experts_per_tok=1)
    assert "the target's forward computes `" in refused(model)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.cumsum(-1),
        lambda x: x.sum(0),
        lambda x: x @ x.t(),
        lambda x: torch.einsum("ij,kj->ik", x, x),
        lambda x: x.exp_(),
        lambda x: x.var(-1),
        lambda x: torch.nn.functional.conv1d(x[None], x[:, None, :1], groups=4),
        lambda x: scaled_dot_product_attention(x[None, None], x[None, None], x[None, None], dropout_p=0.5),
    ],
)
def test_operations_that_are_refused(compute: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(NotExact, match="the target's forward computes"), EachAlone():
        compute(torch.randn(4, 8))
