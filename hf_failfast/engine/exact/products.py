"""Products of rows with a weight, in calls of those numbers of rows that round alike.

Which kernel a matrix library takes for a product, and with it the order in which a row's terms are added, depends on
how many rows there are: one, few and many are often added in different orders. It depends on shapes, and never on the
numbers. So it is found out once for each shape which numbers of rows are added alike: a trial multiplies numbers whose
terms cancel, so that nothing but rounding is left in any result, and every other order shows in nearly all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch.nn.functional import linear, pad

# Rows (n, in) to products (n, out).
Multiply = Callable[[torch.Tensor], torch.Tensor]
# The same with another weight, as `linear` has it (out, in), and a bias (out,): what a trial multiplies with.
Operation = Callable[[torch.Tensor, torch.Tensor | None], Multiply]

BASE = 16  # rows that other numbers of rows are held against; more are multiplied in calls of as many
ALIGNMENT = 64  # bytes; kernels may begin otherwise at other addresses
SIZE = 16.0  # of a trial's weights: what rounding leaves of their products is no subnormal number in float16
RANGE = (-8, 5)  # powers of two among a trial's terms: sums of products in bfloat16 are exact where they are alike


class Shape(NamedTuple):
    """All that the order of a product's terms may depend on besides the number of rows."""

    operation: str
    num_outputs: int
    num_inputs: int
    has_bias: bool
    dtype: torch.dtype
    num_threads: int


class Unalike(ValueError):
    """The rows of a product are not added alike."""


def by_linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear`, (..., in) to (..., out). Raises `Unalike`."""
    _check_layout(weight)
    num_outputs, num_inputs = weight.shape
    shape = Shape("linear", num_outputs, num_inputs, bias is not None, weight.dtype, torch.get_num_threads())
    return _multiplied(rows, shape, _linear(weight, bias), _linear)


def by_matrix(bias: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`torch.addmm` with a weight (in, out), rows (n, in) to (n, out). Raises `Unalike`."""
    _check_layout(weight)
    num_inputs, num_outputs = weight.shape
    shape = Shape("addmm", num_outputs, num_inputs, True, weight.dtype, torch.get_num_threads())
    return _multiplied(rows, shape, lambda block: torch.addmm(bias, block, weight), _addmm)


def by_packed(rows: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product with a weight that `prepack` has packed, (..., in) to (..., out). Raises `Unalike`."""
    num_outputs, num_inputs = packed.shape
    shape = Shape("packed", num_outputs, num_inputs, bias is not None, rows.dtype, torch.get_num_threads())
    return _multiplied(rows, shape, _pointwise(packed, bias), _packed)


def _check_layout(weight: torch.Tensor) -> None:
    if not weight.is_contiguous():
        raise Unalike(f"rows times a weight of {tuple(weight.shape)} that is not contiguous")


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    return lambda rows: linear(rows, weight, bias)


def _addmm(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    matrix, added = weight.t().contiguous(), bias
    assert added is not None
    return lambda rows: torch.addmm(added, rows, matrix)


def _packed(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    return _pointwise(torch.ops.mkldnn._reorder_linear_weight(weight), bias)


def _pointwise(packed: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    return lambda rows: torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")


def _multiplied(rows: torch.Tensor, shape: Shape, multiply: Multiply, operation: Operation) -> torch.Tensor:
    flat = rows.reshape(-1, shape.num_inputs).contiguous()
    products = [multiply(block)[:count] for block, count in _calls(flat, shape, operation)]
    together = products[0] if len(products) == 1 else torch.cat(products)
    return together.reshape(*rows.shape[:-1], shape.num_outputs)


def _calls(rows: torch.Tensor, shape: Shape, operation: Operation) -> Iterator[tuple[torch.Tensor, int]]:
    """The rows in blocks that round alike, at aligned addresses, each with its own number of rows."""
    for start in range(0, len(rows), BASE):
        block = rows[start : start + BASE]
        count = len(block)
        size = _ORDERS.call_size(shape, count, operation)
        if size > count:
            block = pad(block, (0, 0, 0, size - count))
        elif block.data_ptr() % ALIGNMENT:
            block = block.clone()
        yield block, count


class _Trial(NamedTuple):
    rows: torch.Tensor  # (BASE, in)
    products: torch.Tensor  # (BASE, out), of all of them at once


class Orders:
    """What is known of the order of additions, by shape; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trials: dict[Shape, _Trial] = {}
        self._sizes: dict[tuple[Shape, int], int] = {}

    def call_size(self, shape: Shape, count: int, operation: Operation) -> int:
        """The least number of rows from `count` to BASE that is added as BASE rows are. Raises `Unalike`."""
        size = self._sizes.get((shape, count))
        if size is None:
            with self._lock, torch.inference_mode():
                size = self._sizes[shape, count] = self._tried(shape, count, operation)
        return size

    def _tried(self, shape: Shape, count: int, operation: Operation) -> int:
        rows, weight, bias = cancelling(shape)
        multiply = operation(weight, bias)
        if shape not in self._trials:
            self._trials[shape] = _Trial(rows, _of_base(shape, rows, multiply))
        expected = self._trials[shape].products
        fitting = (size for size in range(count, BASE) if torch.equal(multiply(rows[:size].clone()), expected[:size]))
        return next(fitting, BASE)


_ORDERS = Orders()


def _of_base(shape: Shape, rows: torch.Tensor, multiply: Multiply) -> torch.Tensor:
    """The products of BASE rows. Raises `Unalike` if a row's product depends on its place among them: each row moves
    by one place, so that a difference between any two places shows."""
    products = multiply(rows)
    if not torch.equal(multiply(rows.roll(1, 0)), products.roll(1, 0)):
        raise Unalike(f"rows times a weight of {shape.num_inputs} x {shape.num_outputs} in {shape.dtype}")
    return products


def cancelling(shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Rows (BASE, in), a weight (out, in) and a bias whose products' terms cancel, in another order than they stand
    in: an exact sum would be the bias, which is as small as what rounding leaves."""
    generator = torch.Generator().manual_seed(0)
    half = shape.num_inputs // 2
    order = torch.randperm(half, generator=generator)

    def halves(count: int, sign: int, scale: torch.Tensor) -> torch.Tensor:
        values = torch.zeros(count, shape.num_inputs, dtype=shape.dtype)
        values[:, :half] = scale * torch.randn(count, half, generator=generator)
        values[:, half : 2 * half] = sign * values[:, order]
        return values

    # Some hundred rows of a large weight are enough: the others repeat them.
    distinct = halves(min(shape.num_outputs, 509), -1, torch.tensor(SIZE))
    weight = distinct.repeat(-(-shape.num_outputs // len(distinct)), 1)[: shape.num_outputs].contiguous()
    bias = None
    if shape.has_bias:
        bias = (2.0**-12 * torch.randn(shape.num_outputs, generator=generator)).to(shape.dtype)
    scales = 2.0 ** torch.randint(*RANGE, (half,), generator=generator)
    return halves(BASE, 1, scales), weight, bias
