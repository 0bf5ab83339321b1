"""Ties of matrix products: contracted axes tie, the others pass through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from graphopt.cost import operator
from graphopt.coupling.axes import Axes, Axis, Fixed, Unfit, size_of
from graphopt.coupling.site import Rules, Site

__all__ = ["PRODUCTS", "einsum_terms", "summed_axis"]

_SUMMED: Mapping[str, int] = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}


def summed_axis(node: gs.Node) -> int | None:
    """The axis of its data that a node multiplies by its weight and sums over.

    None for other operators, and for a Gemm that transposes its data.
    """
    return None if node.attrs.get("transA") else _SUMMED.get(operator(node))


def _multiply(site: Site, left: Axes, right: Axes) -> Axes:
    """numpy's matmul: (..., m, k) and (..., k, n)."""
    if not left or not right:
        raise Unfit("multiplies single values")
    column = len(right) > 1
    site.wiring.tie(left[-1], right[-2 if column else -1])
    outer = [axes for axes in (left[:-2], right[:-2]) if axes]
    batch = site.broadcast(outer) if outer else ()
    return (*batch, *left[-2:-1], *(right[-1:] if column else ()))


def product(site: Site) -> Sequence[Axes | None]:
    return [_multiply(site, site.axes(0), site.axes(1))]


def _swapped(axes: Axes, *, swap: bool) -> Axes:
    return (*axes[:-2], axes[-1], axes[-2]) if swap and len(axes) > 1 else axes


def fused_product(site: Site) -> Sequence[Axes | None]:
    if site.attribute("transBatchA", 0) or site.attribute("transBatchB", 0):
        raise Unfit("transposes the batch")
    left = _swapped(site.axes(0), swap=bool(site.attribute("transA", 0)))
    right = _swapped(site.axes(1), swap=bool(site.attribute("transB", 0)))
    return [_multiply(site, left, right)]


def general_product(site: Site) -> Sequence[Axes | None]:
    (out,) = fused_product(site)
    assert out is not None
    if site.has(2):
        out = site.broadcast([out, site.axes(2)])
    return [out]


def _per_column(site: Site, indices: Sequence[int], column: Axis) -> None:
    for index in indices:
        if not site.has(index):
            continue
        axes = site.axes(index)
        if len(axes) > 1:
            raise Unfit("has scales of more than one axis")
        if axes and size_of(axes[0]) != 1:
            site.wiring.tie(column, axes[0])
        elif axes:
            site.pin(axes[0], "has one value for all columns", quiet=True)


def integer_product(site: Site) -> Sequence[Axes | None]:
    """Zero points: of A one (or one per row, which is refused), of B one or one per column."""
    out = _multiply(site, site.axes(0), site.axes(1))
    if site.has(2) and any(size_of(axis) != 1 for axis in site.axes(2)):
        raise Unfit("has a zero point per row")
    _per_column(site, (3,), out[-1])
    return [out]


def float_integer_product(site: Site) -> Sequence[Axes | None]:
    """MatMulIntegerToFloat: A, B, scale A, scale B, zero points A and B, bias."""
    out = _multiply(site, site.axes(0), site.axes(1))
    _per_column(site, (3, 5, 6), out[-1])
    return [out]


def dynamic_product(site: Site) -> Sequence[Axes | None]:
    """DynamicQuantizeMatMul: A, B, scale B, zero point B, bias."""
    left = site.axes(0)
    out = _multiply(site, left, site.axes(1))
    site.wiring.blur(left[-1], site.fixed(None, "takes its scale from the kept channels only"))
    _per_column(site, (2, 3, 4), out[-1])
    return [out]


def quantized_product(site: Site) -> Sequence[Axes | None]:
    """QLinearMatMul: a, its scale and zero point; b, its scale and zero point; y's."""
    out = _multiply(site, site.axes(0), site.axes(3))
    for index in (1, 2):
        if any(size_of(axis) != 1 for axis in site.axes(index)):
            raise Unfit("has scales per row")
    _per_column(site, (4, 5), out[-1])
    return [out]


def einsum_terms(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Labels of the operands' and the result's axes; those under an ellipsis get numbers."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = max(
        rank - len(term.replace("...", "")) if "..." in term else 0
        for term, rank in zip(terms, ranks, strict=True)
    )
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        right = ("..." if hidden else "") + "".join(once)
    operands = [
        _labels(term, rank - len(term.replace("...", "")))
        for term, rank in zip(terms, ranks, strict=True)
    ]
    return operands, _labels(right, hidden)


def _labels(term: str, hidden: int) -> list[str]:
    before, dots, after = term.partition("...")
    return [*before, *(f".{place}" for place in range(hidden, 0, -1) if dots), *after]


def einsum(site: Site) -> Sequence[Axes | None]:
    """Axes of one letter tie; a letter that the result lacks is summed over."""
    operands = [site.axes(index) for index in range(len(site.node.inputs))]
    equation = site.node.attrs["equation"]
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    terms, result = einsum_terms(text, [len(axes) for axes in operands])
    named: dict[str, Axis] = {}
    for labels, axes in zip(terms, operands, strict=True):
        for name, axis in zip(labels, axes, strict=True):
            named[name] = _joined(site, named[name], axis) if name in named else axis
        for name in {name for name in labels if labels.count(name) > 1}:
            site.pin(named[name], "takes a diagonal of it")
    return [tuple(named[name] for name in result)]


def _joined(site: Site, left: Axis, right: Axis) -> Axis:
    if size_of(left) == size_of(right):
        return site.wiring.tie(left, right)
    narrow, wide = (left, right) if size_of(left) == 1 else (right, left)
    if size_of(narrow) != 1:
        raise Unfit("multiplies axes of different sizes")
    site.pin(narrow, "is broadcast along it")
    if isinstance(wide, Fixed):
        return wide
    return wide


PRODUCTS: Rules = {
    "Einsum": einsum,
    "Gemm": general_product,
    "MatMul": product,
    "MatMulInteger": integer_product,
    "QLinearMatMul": quantized_product,
    "com.microsoft:DynamicQuantizeMatMul": dynamic_product,
    "com.microsoft:FusedGemm": general_product,
    "com.microsoft:FusedMatMul": fused_product,
    "com.microsoft:MatMulIntegerToFloat": float_integer_product,
    "com.microsoft:TransposeMatMul": fused_product,
}
