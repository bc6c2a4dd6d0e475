"""The kernels of the fused decoder against their definitions, and the definitions against transformers' modules."""

import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb
from triton_support import rounding as rounding

from hf_failfast.engine.kernels import reference

pytest.importorskip("triton")
from hf_failfast.engine.kernels import triton_decoder as kernels

pytestmark = pytest.mark.usefixtures("rounding")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Sums in another order may round to the next number.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype
    bound = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)
    # Nearly all are equal to the last bit: what stores no intermediate result in the model's dtype fails here.
    if expected.dtype != torch.float32:
        assert (actual == expected).float().mean() > 0.98


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask_token_id", [None, 1, 50])
def test_embed(dtype: torch.dtype, mask_token_id: int | None) -> None:
    """Rows of a table of any dtype, and the mask's own embedding, go to rows that are apart."""
    ids = torch.tensor([3, 50, 1, 0]) if mask_token_id == 50 else torch.tensor([3, 1, 1, 0])
    mask = None if mask_token_id is None else normal(1030, dtype=dtype, seed=1)
    for table in (normal(5, 1030, dtype=dtype), normal(5, 1030)):
        ours, theirs = torch.zeros(2, 4, 1100, dtype=dtype)
        kernels.embed(ids, table, mask_token_id, mask, ours[:, 7:1037])
        reference.embed(ids, table, mask_token_id, mask, theirs[:, 7:1037])
        assert torch.equal(ours, theirs)
        expected = torch.nn.functional.embedding(ids.clamp(max=4), table).to(dtype)
        if mask is not None:
            expected[ids == mask_token_id] = mask
        assert torch.equal(ours[:, 7:1037], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 48, 576])
def test_add_norm(dtype: torch.dtype, width: int) -> None:
    """Sum and norm are those of transformers' modules, in place, without a sum, and for rows that are apart."""
    residual, delta = 3 * normal(4, width, dtype=dtype), normal(4, width, dtype=dtype, seed=1)
    norm = LlamaRMSNorm(width, eps=1e-3).to(dtype)
    norm.weight.data = normal(width, dtype=dtype, seed=2)
    weight = norm.weight.detach()
    for adds in (delta, None):
        total = residual if adds is None else residual + adds
        expected = norm(total).detach()
        for add_norm in (kernels.add_norm, reference.add_norm):
            summed, normed = torch.zeros(2, 4, width + 3, dtype=dtype)[:, :, 3:]
            add_norm(residual, adds, weight, 1e-3, summed, normed)
            assert torch.equal(summed, torch.zeros_like(total) if adds is None else total)
            assert_close(normed, expected)
            in_place, normed = residual.clone(), torch.zeros_like(residual)
            add_norm(in_place, adds, weight, 1e-3, in_place, normed)
            assert torch.equal(in_place, total)
            assert_close(normed, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(
    ("num_rows", "num_tokens", "heads", "kv_heads", "head_dim"),
    [(1, 1, 4, 2, 64), (2, 3, 3, 1, 80), (1, 2, 2, 2, 96), (3, 1, 2, 1, 8)],
)
def test_rotate_and_store(
    dtype: torch.dtype, has_norms: bool, num_rows: int, num_tokens: int, heads: int, kv_heads: int, head_dim: int
) -> None:
    """Queries, and the keys and values in the slots of rows of different length, are those of transformers' modules;
    all other slots stay as they are."""
    projected = normal(num_rows * num_tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    cosines, sines = normal(2, 20, head_dim, seed=1).to(dtype)  # the halves differ: each element has its own
    starts = torch.tensor([[4], [11], [0]])[:num_rows]
    norms = [LlamaRMSNorm(head_dim, eps=1e-2).to(dtype) for _ in range(2)]
    for seed, norm in enumerate(norms):
        norm.weight.data = normal(head_dim, dtype=dtype, seed=seed)
    weights = (norms[0].weight.detach(), norms[1].weight.detach()) if has_norms else None

    states = projected.view(num_rows, num_tokens, -1, head_dim)
    query, key, value = states.split([heads, kv_heads, kv_heads], dim=2)
    if has_norms:
        query, key = (norm(each).detach() for norm, each in zip(norms, (query, key), strict=True))
    positions = starts + torch.arange(num_tokens)
    query, key = apply_rotary_pos_emb(query, key, cosines[positions], sines[positions], unsqueeze_dim=2)

    for rotate_and_store in (kernels.rotate_and_store, reference.rotate_and_store):
        slots = torch.full((2, num_rows, kv_heads + 1, 24, head_dim), 7.0, dtype=dtype)[:, :, 1:]
        expected = slots.clone()
        for row in range(num_rows):
            expected[0, row, :, positions[row]] = key[row].transpose(0, 1)
            expected[1, row, :, positions[row]] = value[row].transpose(0, 1)
        actual = rotate_and_store(projected, cosines, sines, starts, slots[0], slots[1], weights, 1e-2)
        assert_close(actual, query)
        assert_close(slots, expected)
        assert torch.equal(slots[1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 1030])
def test_swiglu(dtype: torch.dtype, width: int) -> None:
    """Gate and up become what transformers' MLP makes of them, extreme gates included."""
    projected = 4 * normal(3, 2 * width, dtype=dtype)
    projected[0, :3] = torch.tensor([80.0, -80.0, 0.0])
    config = AutoConfig.for_model("llama", hidden_size=8, intermediate_size=width, num_attention_heads=1)
    mlp = LlamaMLP(config)
    expected = mlp.act_fn(projected[:, :width]) * projected[:, width:]
    for swiglu in (kernels.swiglu, reference.swiglu):
        assert_close(swiglu(projected), expected)
