"""Lowerings of functions of several tensors that broadcast against each other."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping

import torch
from torch import fx

from graphopt.lens.dtypes import is_whole
from graphopt.lens.site import Operand, Row, Site, as_number

__all__ = ["ROWS"]

_Binary = Callable[..., object]


def _operands(site: Site) -> tuple[Operand, Operand]:
    """Both operands; a lone float constant becomes a Python number where no shape is lost.

    That keeps the other operand's type under autocast, and computes faster.
    """
    first, second = (_number(site, i, 1 - i) for i in (0, 1))
    if first is not None and second is None:
        return first, site.arg(1)
    if second is not None and first is None:
        return _aligned(site, second)
    return _aligned(site, site.arg(1))


def _number(site: Site, position: int, other: int) -> Operand | None:
    array, rank = site.constant(position), site.rank(other)
    if array is None or array.size != 1 or array.dtype.name not in ("float32", "float64"):
        return None
    if array.ndim and (rank is None or rank < array.ndim):
        return None
    if site.around.is_weight(site.name(position)):
        return None
    return as_number(array)


def _aligned(site: Site, second: Operand) -> tuple[Operand, Operand]:
    """Before operator set 7, `axis` says where the second operand's shape begins."""
    axis, rank, own = site.integer("axis", -1), site.rank(0), site.rank(1)
    if "axis" not in site.attributes or site.opset >= 7 or not isinstance(second, fx.Node):
        return site.arg(0), second
    if rank is None or own is None:
        site.refuse("it broadcasts along an axis of a tensor of unknown rank")
    axis = axis + rank if axis < 0 else axis
    return site.arg(0), site.call(_append_axes, second, rank - axis - own)


def _append_axes(x: torch.Tensor, count: int) -> torch.Tensor:
    return x.reshape(*x.shape, *[1] * count)


def _binary(function: _Binary) -> Row:
    def row(site: Site) -> fx.Node:
        return site.call(function, *_operands(site))

    return row


def _tensors(function: _Binary) -> Row:
    """Like `_binary`, for functions that take no Python numbers."""

    def row(site: Site) -> fx.Node:
        return site.call(function, *_aligned(site, site.arg(1)))

    return row


def divide_integers(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Divide towards zero."""
    return torch.div(a, b, rounding_mode="trunc")


def divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Divide tensors of a type that is known only now."""
    return a / b if a.is_floating_point() or a.is_complex() else divide_integers(a, b)


def _div(site: Site) -> fx.Node:
    dtype = site.dtype(0) or site.dtype(1)
    if dtype is None:
        return _tensors(divide)(site)  # type: ignore[return-value]
    whole = is_whole(dtype)
    return (_tensors(divide_integers) if whole else _binary(operator.truediv))(site)  # type: ignore[return-value]


def power(base: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """Raise to a power, in the base's type."""
    return torch.pow(base, exponent).to(base.dtype)


def _pow(site: Site) -> fx.Node:
    first, second = site.dtype(0), site.dtype(1)
    if first is not None and first == second and not is_whole(first):
        return site.call(operator.pow, *_operands(site))
    return site.call(power, *_aligned(site, site.arg(1)))


def _mod(site: Site) -> fx.Node:
    function = torch.fmod if site.flag("fmod") else torch.remainder
    return site.call(function, site.arg(0), site.arg(1))


def _bit_shift(site: Site) -> fx.Node:
    left = site.text("direction", "LEFT") == "LEFT"
    function = torch.bitwise_left_shift if left else torch.bitwise_right_shift
    return site.call(function, site.arg(0), site.arg(1))


def _reduced(function: _Binary) -> Row:
    """A row that joins any number of operands two by two."""

    def row(site: Site) -> fx.Node:
        return functools.reduce(lambda a, b: site.call(function, a, b), site.args())

    return row


def _mean(site: Site) -> fx.Node:
    total = functools.reduce(lambda a, b: site.call(operator.add, a, b), site.args())
    return site.call(operator.truediv, total, len(site))


def _where(site: Site) -> fx.Node:
    return site.call(torch.where, site.arg(0), site.arg(1), site.arg(2))


ROWS: Mapping[str, Row] = {
    "Add": _binary(operator.add),
    "And": _tensors(torch.logical_and),
    "BitShift": _bit_shift,
    "BitwiseAnd": _tensors(torch.bitwise_and),
    "BitwiseOr": _tensors(torch.bitwise_or),
    "BitwiseXor": _tensors(torch.bitwise_xor),
    "Div": _div,
    "Equal": _binary(operator.eq),
    "Greater": _binary(operator.gt),
    "GreaterOrEqual": _binary(operator.ge),
    "Less": _binary(operator.lt),
    "LessOrEqual": _binary(operator.le),
    "Max": _reduced(torch.maximum),
    "Mean": _mean,
    "Min": _reduced(torch.minimum),
    "Mod": _mod,
    "Mul": _binary(operator.mul),
    "Or": _tensors(torch.logical_or),
    "Pow": _pow,
    "Sub": _binary(operator.sub),
    "Sum": _reduced(operator.add),
    "Where": _where,
    "Xor": _tensors(torch.logical_xor),
}
