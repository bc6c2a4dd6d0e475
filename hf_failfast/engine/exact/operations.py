"""Which operations of a forward compute every token as if it were alone, and what stands in for those that do not.

A forward runs under `EachAlone`, which sees every operation of torch that the model's code calls:

- moves, comparisons, and arithmetic that IEEE 754 rounds in one way only run as they are, and so do sums and norms
  over the last dimension, which torch computes for each row by itself;
- functions such as exp run on whole vectors only: torch computes the rest of a tensor that fills no vector, and what
  is left at the end of a thread's share, by another formula;
- products and attention are computed in shapes that round alike (`products.py`, `attention.py`);
- anything else that computes with floating-point numbers is refused by name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

from .attention import attend
from .products import ALIGNMENT, Unalike, by_linear, by_matrix, by_packed

Form = Callable[[Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any]

# Names without underscores, so that `add` stands for `torch.add`, `Tensor.add_` and `+`.
_FACTS_AND_MOVES = """
    alias arange as_strided as_tensor bfloat16 bool broadcast_to cat chunk clone concat concatenate contiguous copy cpu
    data_ptr detach device dim double dtype element_size embedding empty empty_like expand expand_as flatten flip float
    full full_like gather getitem half index_copy index_put index_select int is_complex is_contiguous is_floating_point
    is_inference item len long masked_fill masked_select movedim narrow ndimension nelement new_empty new_full new_ones
    new_tensor new_zeros numel ones ones_like pad permute repeat repeat_interleave requires_grad reshape reshape_as
    roll scatter select setitem size slice split split_with_sizes squeeze stack stride swapaxes swapdims t tensor
    take_along_dim tile to tolist transpose tril triu type type_as unbind unflatten unsqueeze view view_as where zeros
    zeros_like
"""
_ARITHMETIC = """
    abs add clamp clamp_max clamp_min clip div divide dropout eq equal ge gt iadd imul isub itruediv le lt maximum
    minimum mul multiply ne neg negative pos radd rdiv reciprocal relu rmul rsub rtruediv sign sqrt square sub
    subtract true_divide truediv
"""
_NORMS = "layer_norm rms_norm"
_OVER_LAST_DIMENSION = "amax amin mean sum"
_FUNCTIONS = """
    celu cos elu erf exp exp2 expm1 gelu hardsigmoid hardswish hardtanh leaky_relu log log1p logsigmoid mish pow relu6
    selu sigmoid silu sin softplus softsign tan tanh
"""
AS_IT_IS = frozenset(f"{_FACTS_AND_MOVES} {_ARITHMETIC} {_NORMS}".split())
OVER_LAST_DIMENSION = frozenset(_OVER_LAST_DIMENSION.split())
IN_WHOLE_VECTORS = frozenset(_FUNCTIONS.split())
LANES = 64  # numbers that fill torch's unrolled vectors, of any dtype and processor
SHARE = 2048  # numbers that no function shares between threads


class NotExact(ValueError):
    """A forward of the target computes something that is not known to round each token as if it were alone."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"`exact`=True is not possible, only `exact`=False: the target's forward computes {what}, which is not "
            "known to round a token as if it were alone."
        )


class EachAlone(TorchFunctionMode):
    """In this context torch computes every token as if it were alone, in this thread. Raises `NotExact`.

    It does not nest: see `each_alone`.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        form = _FORMS.get(func)
        if form is None:
            form = _FORMS[func] = _form_of(func)
        return form(func, args, kwargs or {})


class _Here(threading.local):
    is_active = False


_HERE = _Here()


@contextmanager
def each_alone() -> Iterator[None]:
    """`EachAlone`, unless this thread is in one."""
    if _HERE.is_active:
        yield
        return
    _HERE.is_active = True
    try:
        with EachAlone():
            yield
    finally:
        _HERE.is_active = False


def _as_it_is(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return func(*args, **kwargs)


_FORMS: dict[Callable[..., Any], Form] = {}


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func)).strip("_")


def _form_of(func: Callable[..., Any]) -> Form:
    name = _name(func)
    if name in ("get", "set", "delete") or name in AS_IT_IS:  # of attributes
        return _as_it_is
    if name in IN_WHOLE_VECTORS:
        return _in_whole_vectors
    if name in OVER_LAST_DIMENSION:
        return _over_last_dimension
    return _OWN.get(name, _of_whole_numbers)


def _of_whole_numbers(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Without floating-point numbers nothing is rounded."""
    if any(each.is_floating_point() for each in _tensors((args, list(kwargs.values())))):
        raise NotExact(f"`{_name(func)}`")
    return func(*args, **kwargs)


def _tensors(values: Any) -> Iterable[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for each in values:
            yield from _tensors(each)


def _over_last_dimension(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    values, *others = args
    if not values.is_floating_point():
        return func(*args, **kwargs)
    dim = others[0] if others else kwargs.get("dim")
    dims = list(dim) if isinstance(dim, (tuple, list)) else [dim]
    if dims not in ([-1], [values.dim() - 1]):
        raise NotExact(f"`{_name(func)}` over other dimensions than the last")
    return func(values.contiguous(), *others, **kwargs)


def _in_whole_vectors(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    values, *others = args
    if kwargs.get("inplace") or getattr(func, "__name__", "").endswith("_") or list(_tensors(others)):
        raise NotExact(f"`{_name(func)}` in place or of several tensors")
    if not isinstance(values, torch.Tensor) or not values.is_floating_point():
        return func(*args, **kwargs)
    values = values.contiguous()
    count = values.numel()
    is_whole = count % LANES == 0 and values.data_ptr() % ALIGNMENT == 0
    if is_whole and (count <= SHARE or torch.get_num_threads() == 1):
        return func(values, *others, **kwargs)
    flat = pad(values.reshape(-1), (0, -count % LANES))
    parts = [func(part.clone(), *others, **kwargs) for part in flat.split(SHARE)]
    return torch.cat(parts)[:count].reshape(values.shape)


def _rsqrt(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Below float32 what fills no vector is rounded twice."""
    return (_as_it_is if args[0].dtype == torch.float32 else _in_whole_vectors)(func, args, kwargs)


def _matmul(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    first, second = args
    if not first.is_floating_point() or first.shape[-1] == 1:  # a single term has nothing to be added to
        return func(*args, **kwargs)
    raise NotExact("a product of two tensors outside of its layers and `scaled_dot_product_attention`")


def _product(multiplied: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    try:
        return multiplied(*args, **kwargs)
    except Unalike as error:
        raise NotExact(str(error)) from error


def _linear(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return _product(by_linear, *args, **kwargs)


def _addmm(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if kwargs:
        raise NotExact("`addmm` with factors")
    return _product(by_matrix, *args)


def _packed(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    rows, weight, bias, *_ = args
    return _product(by_packed, rows, weight, bias)


def _attention(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        return attend(*args, **kwargs)
    except ValueError as error:
        raise NotExact(str(error)) from error


_OWN: dict[str, Form] = {
    "addmm": _addmm,
    "bmm": _matmul,
    "linear": _linear,
    "linear_pointwise": _packed,
    "matmul": _matmul,
    "mm": _matmul,
    "rsqrt": _rsqrt,
    "scaled_dot_product_attention": _attention,
}
