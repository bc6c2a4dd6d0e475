"""The Triton kernels against their torch references; and that they compile for GPUs.

They run in Triton's interpreter (`conftest` sets it), which has no matrix product in bfloat16: `benchmarks/gpu.py`
checks attention in bfloat16.
"""

import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, quick_first
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_failfast.engine import kernels
from hf_failfast.engine.kernels import reference

pytest.importorskip("triton")
from hf_failfast.engine.kernels import triton_attention as attention
from hf_failfast.engine.kernels import triton_confidence as confidence
from hf_failfast.engine.kernels import triton_decisions as decisions

FEW = settings(max_examples=25, deadline=None)


# Confidence, token, length decision


def check_chunk(logits: torch.Tensor, vocab_size: int, mask_id: int | None, eos: list[int], tau: float = 0.2) -> None:
    ends = torch.tensor(eos) if eos else None
    expected_ids, expected = reference.most_likely(logits.clone(), vocab_size, mask_id)
    ids, sure = confidence.most_likely(logits, vocab_size, mask_id)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(sure, expected, rtol=1e-5, atol=1e-7, equal_nan=True)
    assert decisions.chunk_decision(ids, sure, tau, ends) == reference.chunk_decision(ids, sure, tau, ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "vocab_size", "mask_id"),
    [
        ((1, 10, 5000), 5000, 4999),  # several splits, the last one short
        ((2, 3, 777), 700, 5),  # ids the target does not know; two sequences
        ((3, 1, 2048), 2048, None),
        ((1, 33, 1025), 1025, 2000),  # a mask id beyond the vocabulary
        ((2, 1, 1), 1, None),
    ],
)
def test_confidence(dtype: torch.dtype, shape: tuple[int, int, int], vocab_size: int, mask_id: int | None) -> None:
    """Tokens, confidences and draft lengths equal the definition's."""
    logits = (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))).to(dtype)
    check_chunk(logits, vocab_size, mask_id, [3, 40])


def test_ties_break_to_the_first() -> None:
    """Of equal logits, common in bfloat16, the first wins as in torch, across the splits too."""
    logits = torch.zeros(1, 4, 4100)
    logits[0, 1, [7, 3000, 4099]] = 1.0
    logits[0, 2, [4099]] = 1.0
    logits[0, 3, :1030] = -1.0
    assert confidence.most_likely(logits, 4100, None)[0].tolist() == [[0, 7, 4099, 1030]]
    check_chunk(logits, 4100, None, [])


def test_not_finite() -> None:
    """NaN, infinity, and positions without any finite logit give what the definition gives."""
    logits = torch.randn(2, 6, 2500, generator=torch.Generator().manual_seed(2))
    logits[0, 0] = -torch.inf
    logits[0, 1, [2000, 1100]] = torch.nan
    logits[0, 2, 1:] = -torch.inf
    logits[0, 3, 17] = torch.inf
    logits[0, 4, :2400] = -torch.inf
    logits[1, 0, 2] = torch.nan  # inadmissible: only the confidence is lost
    logits[1, 1, 2450] = torch.nan
    logits[1, 2] = torch.nan
    logits[1, 3] = -torch.inf
    logits[1, 3, 2] = 0.0
    check_chunk(logits, 2400, 2, [5])


@FEW
@given(st.data())
def test_confidence_of_anything(data: st.DataObject) -> None:
    """Any mixture of ties, infinities and odd sizes gives what the definition gives."""
    batch, rows, width = data.draw(st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(1, 2100)))
    seed = data.draw(st.integers(0, 2**31))
    levels = torch.tensor(data.draw(st.lists(st.sampled_from([-2.0, 0.0, 3.0, -torch.inf]), min_size=1)))
    picks = torch.randint(len(levels), (batch, rows, width), generator=torch.Generator().manual_seed(seed))
    vocab_size = data.draw(st.integers(1, width))
    mask_id = data.draw(st.none() | st.integers(0, width))
    eos = data.draw(st.lists(st.integers(0, width), max_size=2))
    check_chunk(levels[picks], vocab_size, mask_id, eos, tau=data.draw(st.sampled_from([0.0, 1e-3, 1.0])))


def test_strided_rows() -> None:
    """A slice of wider logits is read from the right places."""
    logits = torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(3))[:, 1:3, :200]
    check_chunk(logits, 200, 0, [])


def test_without_a_gpu_the_reference_runs() -> None:
    """On a CPU the functions give the reference's results."""
    logits = torch.randn(1, 3, 50)
    for ours, expected in zip(kernels.most_likely(logits, 50, 4), reference.most_likely(logits, 50, 4), strict=True):
        assert torch.equal(ours, expected)


def test_with_a_gpu_the_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device with kernels each function finds its kernel, in the first and in later calls."""
    monkeypatch.setattr(kernels, "is_fused", lambda device: True)
    logits = torch.randn(1, 3, 50)
    states = torch.randn(3, 1, 2, 20, 16)
    limit = torch.arange(1, 21)[None]
    for _ in range(2):
        ours, expected = kernels.most_likely(logits, 50, 4), reference.most_likely(logits, 50, 4)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(kernels.attention(*states, limit), reference.attention(*states, limit))
        chunk = torch.ones(1, 3, dtype=torch.long), torch.rand(1, 3), 0.5, None
        assert kernels.chunk_decision(*chunk) == reference.chunk_decision(*chunk)
        draft = torch.ones(1, 2, dtype=torch.long), torch.rand(1, 2), chunk[0], [2], [7], [False], 9, None
        assert kernels.accept(*draft) == reference.accept(*draft)


def test_the_reference_leaves_its_input() -> None:
    """The caller's logits keep their mask token."""
    logits = torch.ones(1, 2, 5)
    reference.most_likely(logits, 5, 4)
    assert torch.equal(logits, torch.ones(1, 2, 5))


def test_chunk_decision_by_example() -> None:
    """Definition and kernel give the expected decisions: at an end, in doubt, for NaN, and exactly at tau."""
    ids = torch.tensor([[1, 2, 3], [1, 7, 7], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    sure = torch.tensor([[0.9, 0.5, 0.7], [0.9, 0.9, 0.9], [0.9, 0.4, 0.9], [0.9, torch.nan, 0.9], [0.45, 0.45, 0.45]])
    for decide in (reference.chunk_decision, decisions.chunk_decision):
        decided = decide(ids, sure, 0.45, torch.tensor([7, 8]))
        assert decided == [(3, True), (2, False), (3, False), (3, False), (3, True)]
        assert decide(ids[:, 1:], sure[:, 1:], 0.45, None)[1] == (2, True)


# Acceptance


@FEW
@given(st.data())
def test_accept(data: st.DataObject) -> None:
    """Accepts any drafts, ends of sequence, bounds and finished sequences as the definition does."""
    batch, drafted = data.draw(st.tuples(st.integers(1, 4), st.integers(0, 9)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))

    def below(bound: int, *shape: int) -> torch.Tensor:
        return torch.randint(bound, shape, generator=generator)

    tokens = below(4, batch, drafted + 1)
    draft = torch.where(below(6, batch, drafted) > 0, tokens[:, :-1], below(4, batch, drafted))
    eos = data.draw(st.sampled_from([None, [3], [1, 9]]))
    confidence = torch.rand(batch, drafted, generator=generator)
    arguments = (
        draft,
        torch.where(confidence < 0.1, torch.nan, confidence),
        tokens,
        below(drafted + 1, batch).tolist(),
        (5 + below(8, batch)).tolist(),
        (below(3, batch) == 0).tolist(),
        data.draw(st.integers(13, 24)),
        None if eos is None else torch.tensor(eos),
    )
    assert decisions.accept(*arguments) == reference.accept(*arguments)


def test_accept_by_example() -> None:
    """Definition and kernel give the expected outcomes."""
    draft = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    tokens = torch.tensor([[1, 2, 9, 4], [1, 2, 3, 4], [1, 7, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [7, 2, 3, 4]])
    confidence = torch.full(draft.shape, 0.5)
    confidence[1, 2] = torch.nan
    drafted = [3, 3, 3, 1, 3, 3]
    lengths = [10, 10, 10, 10, 18, 10]
    finished = [False] * 5 + [True]
    for accept in (reference.accept, decisions.accept):
        result = accept(draft, confidence, tokens, drafted, lengths, finished, 20, torch.tensor([7]))
        assert [row.accepted for row in result] == [2, 3, 1, 1, 2, 0]
        assert [row.emitted for row in result] == [3, 4, 2, 2, 2, 0]
        assert [row.finished for row in result] == [False, False, True, False, True, True]
        assert [row.broken for row in result] == [False, True, False, False, False, False]


def test_a_strided_draft() -> None:
    """Slices of wider tensors, which the loop passes, are read from the right places."""
    draft, tokens, confidence = torch.randint(3, (2, 9)), torch.randint(3, (2, 9)), torch.rand(2, 9)
    rows = draft[:, 1:4], confidence[:, 1:4], tokens[:, 2:6], [3, 3], [5, 6], [False, False], 30, None
    assert decisions.accept(*rows) == reference.accept(*rows)
    chunk = draft[:, 1:4], confidence[:, 1:4], 0.3, torch.tensor([1])
    assert decisions.chunk_decision(*chunk) == reference.chunk_decision(*chunk)


# Attention


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "rows", "slots", "head_dim"),
    [
        (1, 4, 2, 5, 70, 16),
        (2, 6, 2, 12, 200, 24),  # a head size that is no power of two, several tiles of tokens
        (2, 3, 1, 1, 64, 64),
        (1, 2, 2, 40, 33, 8),  # smaller than a tile
    ],
)
def test_attention(
    batch: int, heads: int, kv_heads: int, rows: int, slots: int, head_dim: int, windowed: bool
) -> None:
    """Tokens see their own slots and heads their own K/V head, as in the reference, ragged lengths included."""
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(batch, rows, heads, head_dim, generator=generator).transpose(1, 2)  # as models lay it out
    key, value = torch.randn(2, batch, kv_heads, slots, head_dim, generator=generator)
    limit = torch.randint(0, slots + 1, (batch, rows), generator=generator)
    limit[0, 0] = 0  # sees nothing
    limit[-1, -1] = slots
    first = (limit - 20).clamp(min=0) if windowed else None
    expected = reference.attention(query, key, value, limit, first)
    torch.testing.assert_close(attention.attention(query, key, value, limit, first), expected, rtol=1e-5, atol=1e-5)
    both = torch.stack([torch.zeros_like(limit) if first is None else first, limit], dim=1)  # strided views
    torch.testing.assert_close(attention.attention(query, key, value, both[:, 1], both[:, 0]), expected)
    half = [states.half() for states in (query, key, value)]
    ours = attention.attention(*half, limit, first, scale=0.3)
    theirs = reference.attention(query, key, value, limit, first, scale=0.3).half()
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("size", quick_first([(16, 70), (5, 130), (64, 64), (64, 200)], 2), ids=str)
def test_attention_of_a_tree(size: tuple[int, int], windowed: bool) -> None:
    """Tokens of a tree see the slots before it and their ancestors, the 64th node included, as in the reference."""
    nodes, slots = size
    generator = torch.Generator().manual_seed(nodes + slots)
    query = torch.randn(2, nodes, 6, 24, generator=generator).transpose(1, 2)
    key, value = torch.randn(2, 2, 2, slots, 24, generator=generator)
    limit = torch.tensor([[slots - nodes], [max(slots - nodes - 9, 0)]]).expand(2, nodes).contiguous()
    parents = torch.randint(-1, 1 << 30, (nodes,), generator=generator) % torch.arange(1, nodes + 1) - 1
    bits = [0] * nodes
    for node, parent in enumerate(parents.tolist()):
        bits[node] = (bits[parent] if parent >= 0 else 0) | 1 << node
    bits = [bit - (1 << 64) if bit >> 63 else bit for bit in bits]
    ancestors = torch.tensor([bits, bits])
    first = (limit - 20).clamp(min=0) if windowed else None
    visible = torch.zeros(2, nodes, slots, dtype=torch.bool)
    for row, start in enumerate(limit[:, 0].tolist()):  # written out, apart from the reference
        for node in range(nodes):
            visible[row, node, (start - 20 if windowed and start > 20 else 0) : start] = True
            for other in range(nodes):
                visible[row, node, start + other] = bool(bits[node] >> other & 1)
    attended = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible[:, None], enable_gqa=True
    )
    expected = reference.attention(query, key, value, limit, first, None, ancestors)
    torch.testing.assert_close(expected, attended, rtol=1e-5, atol=1e-5)
    ours = attention.attention(query, key, value, limit, first, None, ancestors)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    both = torch.stack([limit, ancestors], dim=1)  # strided views
    torch.testing.assert_close(attention.attention(query, key, value, both[:, 0], first, None, both[:, 1]), expected)
    chain = reference.attention(query, key, value, limit, first)
    assert not torch.allclose(chain, expected)


def test_attention_does_not_read_hidden_slots() -> None:
    """Stale K/V after the limit, even NaN, do not change the output."""
    query, limit = torch.randn(1, 2, 3, 16), torch.tensor([[90, 91, 92]])
    key, value = torch.randn(2, 1, 1, 300, 16)
    expected = attention.attention(query, key, value, limit)
    key[:, :, 130:] = value[:, :, 130:] = torch.nan  # after the step that holds the last limit
    torch.testing.assert_close(attention.attention(query, key, value, limit), expected)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hf_failfast.engine.kernels import triton_attention as attention
from hf_failfast.engine.kernels import triton_confidence as confidence, triton_decisions as decisions
from hf_failfast.engine.kernels import triton_decoder as decoder

floats = {"maximum", "total", "best", "confidence", "partial", "top_of", "mass_of"}
halves = {"logits", "query", "key", "value", "out", "weight", "mask_embedding", "into", "residual", "delta", "summed"}
halves |= {"normed", "projected", "cosines", "sines", "keys", "values", "query_weight", "key_weight"}
longs = {"token_ids", "eos_token_ids", "draft_ids", "state", "limit", "first", "ancestors", "input_ids", "starts"}

def compile(function, out, **constants):
    types = {"index": "*i32", "threshold": "fp32", "scale": "fp32", "epsilon": "fp32", "out": out}
    types |= dict.fromkeys(floats, "*fp32") | dict.fromkeys(halves - {"out"}, "*bf16") | dict.fromkeys(longs, "*i64")
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    fixed = {(names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(ASTSource(function, signature, constexprs=fixed), target=GPUTarget("cuda", 90, 32))
    print(function.__name__, len(compiled.asm["cubin"]), compiled.metadata.shared)

compile(confidence._scan, None, SPLITS=16, TILES=10, BLOCK=1024)
compile(confidence._combine, None, SPLITS=16, ROWS=32)
compile(decisions._decide, "*i64", NUM_EOS=2, PLACES=16)
compile(decisions._accept, "*i64", NUM_EOS=2, PLACES=16)
tile = {"GROUP": 6, "HEAD_DIM": 128, "WIDTH": 128, "ROWS": 64, "SLOTS": 64, "TILES": 4, "PRECISION": "tf32"}
compile(attention._attend, None, **tile, IS_TREE=False)
compile(attention._attend, None, **tile, IS_TREE=True)
compile(attention._join, "*bf16", HEAD_DIM=128, WIDTH=128, SPLITS=16)
compile(decoder._embed, None, MASKED=True, BLOCK=1024)
compile(decoder._add_norm, None, ADDS=True, BLOCK=4096)
compile(decoder._rotate_and_store, None, QUERY_HEADS=12, KV_HEADS=2, HEAD_DIM=80, HALF=64, NORMS=True)
compile(decoder._swiglu, "*bf16", BLOCK=1024)
"""
KERNELS = ["_scan", "_combine", "_decide", "_accept", "_attend", "_attend", "_join"]
KERNELS += ["_embed", "_add_norm", "_rotate_and_store", "_swiglu"]


def test_kernels_compile_for_a_gpu() -> None:
    """Every kernel compiles to Hopper's machine code, for which no GPU is needed, and fits its shared memory."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    sizes = [line.split() for line in result.stdout.splitlines()]
    assert [name for name, *_ in sizes] == KERNELS
    assert all(int(cubin) > 0 and int(shared) <= 99 * 1024 for _, cubin, shared in sizes)
