"""Ties of operators that work index by index: arithmetic, activations, quantization."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.coupling.axes import Axes, Unfit, size_of
from graphopt.coupling.site import Rules, Site

__all__ = ["POINTWISE"]


def elementwise(site: Site) -> Sequence[Axes | None]:
    """Aligned axes of equal size tie; a broadcast axis of size 1 ties nothing."""
    operands = [site.axes(index) for index in range(len(site.node.inputs)) if site.has(index)]
    return [site.broadcast(operands)] * len(site.node.outputs)


def first(site: Site) -> Sequence[Axes | None]:
    """The first input passes through; the others only steer."""
    return [site.axes(0)] * len(site.node.outputs)


def quantization(site: Site) -> Sequence[Axes | None]:
    """A scale per index of one axis, and its zero point, tie with that axis."""
    axes = site.axes(0)
    for index in (1, 2):
        if not site.has(index):
            continue
        given = site.axes(index)
        if len(given) == 1 and size_of(given[0]) == 1:
            site.pin(given[0], "is its only scale")
        elif len(given) == 1:
            site.wiring.tie(axes[site.attribute("axis", 1)], given[0])
        elif given:
            raise Unfit("scales are given block by block")
    return [axes]


def dynamic_quantization(site: Site) -> Sequence[Axes | None]:
    """One scale over everything: without an index it may change a little."""
    axes = site.axes(0)
    for axis in axes:
        site.wiring.blur(axis, site.fixed(None, "takes its scale from the kept channels only"))
    return [axes, (), ()]


def running(site: Site) -> Sequence[Axes | None]:
    """What accumulates or orders along an axis needs all of that axis."""
    axes = site.axes(0)
    axis = site.attribute("axis", -1)
    if site.node.op in ("CumSum", "CumProd"):
        value = site.constant(1)
        if value is None:
            raise Unfit("its axis is computed")
        axis = int(value.reshape(-1)[0])
    site.pin(axes[axis], "works along it")
    return [axes]


_ELEMENTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    Cast Ceil Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod
    Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus
    Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
    com.microsoft:BiasGelu com.microsoft:BiasAdd com.microsoft:FastGelu com.microsoft:Gelu
    com.microsoft:QuickGelu
"""

POINTWISE: Rules = {
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
    "CastLike": first,
    "CumProd": running,
    "CumSum": running,
    "DequantizeLinear": quantization,
    "DynamicQuantizeLinear": dynamic_quantization,
    "QuantizeLinear": quantization,
    "com.microsoft:DequantizeLinear": quantization,
    "com.microsoft:QuantizeLinear": quantization,
}
