"""Lowerings of functions of one tensor that treat each element alone."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping

import torch
from torch import fx
from torch.nn import functional

from graphopt.lens.site import Row, Site

__all__ = ["ROWS"]

_Unary = Callable[[torch.Tensor], torch.Tensor]


def _plain(function: _Unary) -> Row:
    """A row that is one call of a torch function of one tensor."""

    def row(site: Site) -> fx.Node:
        return site.call(function, site.arg(0))

    return row


PLAIN: Mapping[str, _Unary] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.linalg.det,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": functional.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": functional.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
"""Operators that are one torch function of one tensor, without attributes."""


def _identity(site: Site) -> fx.Node:
    return site.arg(0)


def _elu(site: Site) -> fx.Node:
    return site.call(functional.elu, site.arg(0), site.number("alpha", 1.0))


def _celu(site: Site) -> fx.Node:
    return site.call(functional.celu, site.arg(0), site.number("alpha", 1.0))


def _selu(site: Site) -> fx.Node:
    alpha = site.number("alpha", 1.67326319217681884765625)
    gamma = site.number("gamma", 1.05070102214813232421875)
    return site.call(operator.mul, site.call(functional.elu, site.arg(0), alpha), gamma)


def _leaky_relu(site: Site) -> fx.Node:
    return site.call(functional.leaky_relu, site.arg(0), site.number("alpha", 0.01))


def _hard_sigmoid(site: Site) -> fx.Node:
    alpha, beta = site.number("alpha", 0.2), site.number("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return site.call(functional.hardsigmoid, site.arg(0))
    line = site.call(operator.add, site.call(operator.mul, site.arg(0), alpha), beta)
    return site.call(torch.clamp, line, 0.0, 1.0)


def _thresholded_relu(site: Site) -> fx.Node:
    return site.call(functional.threshold, site.arg(0), site.number("alpha", 1.0), 0.0)


def _gelu(site: Site) -> fx.Node:
    return site.call(functional.gelu, site.arg(0), approximate=site.text("approximate", "none"))


def _swish(site: Site) -> fx.Node:
    x, alpha = site.arg(0), site.number("alpha", 1.0)
    if alpha == 1.0:
        return site.call(functional.silu, x)
    return site.call(operator.mul, x, site.call(torch.sigmoid, site.call(operator.mul, x, alpha)))


def shrink(x: torch.Tensor, bias: float, threshold: float) -> torch.Tensor:
    """Zero between -threshold and threshold, and nearer to zero by `bias` beyond."""
    low = torch.where(x < -threshold, x + bias, torch.zeros_like(x))
    return torch.where(x > threshold, x - bias, low).to(x.dtype)


def _shrink(site: Site) -> fx.Node:
    return site.call(shrink, site.arg(0), site.number("bias", 0.0), site.number("lambd", 0.5))


def clip(
    x: torch.Tensor, low: torch.Tensor | float | None, high: torch.Tensor | float | None
) -> torch.Tensor:
    """Clamp to bounds of which some are tensors; the upper one wins."""
    for bound, limit in ((low, torch.maximum), (high, torch.minimum)):
        if bound is not None:
            x = limit(x, torch.as_tensor(bound, dtype=x.dtype, device=x.device))
    return x


def _clip(site: Site) -> fx.Node:
    x = site.arg(0)
    if site.opset < 11:
        limits: list[object] = [
            site.number(key, 0.0) if key in site.attributes else None for key in ("min", "max")
        ]
    else:
        limits = [site.scalar(1), site.scalar(2)]
    if limits == [None, None]:
        return x
    if limits == [0.0, 6.0]:
        return site.call(functional.relu6, x)
    fixed = not any(isinstance(limit, fx.Node) for limit in limits)
    numbers = [limit for limit in limits if isinstance(limit, int | float)]
    if fixed and (len(numbers) < 2 or numbers[0] <= numbers[1]):
        return site.call(torch.clamp, x, *limits)
    return site.call(clip, x, *limits)


def is_inf(x: torch.Tensor, *, negative: bool, positive: bool) -> torch.Tensor:
    """Whether each element is one of the chosen infinities."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if positive:
        found = found | torch.isposinf(x)
    return found | torch.isneginf(x) if negative else found


def _is_inf(site: Site) -> fx.Node:
    negative = site.flag("detect_negative", default=True)
    positive = site.flag("detect_positive", default=True)
    return site.call(is_inf, site.arg(0), negative=negative, positive=positive)


def hardmax(x: torch.Tensor, axis: int) -> torch.Tensor:
    """One at the first greatest element along an axis, zero elsewhere."""
    return torch.zeros_like(x).scatter_(axis, x.argmax(axis, keepdim=True), 1)


def _flattened(function: Callable[..., torch.Tensor]) -> Row:
    """Softmax and its kin: before operator set 13 they see a matrix, split at the axis."""

    def row(site: Site) -> fx.Node:
        x = site.arg(0)
        if site.opset >= 13:
            return site.call(function, x, site.integer("axis", -1))
        axis = site.integer("axis", 1)
        rank = site.rank(0)
        if rank is not None and axis in (-1, rank - 1):
            return site.call(function, x, -1)
        flat = site.call(torch.flatten, site.call(as_matrix, x, axis), 1)
        return site.call(torch.Tensor.view_as, site.call(function, flat, -1), x)

    return row


def as_matrix(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Axes before `axis` as one, and all others as another."""
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Scale negative elements by slopes that broadcast."""
    return torch.where(x < 0, x * slope, x)


def _prelu(site: Site) -> fx.Node:
    slope, rank = site.constant(1), site.rank(0)
    shape = () if slope is None else slope.shape
    channelwise = rank is not None and rank > 1 and len(shape) == rank - 1
    if slope is not None and channelwise and shape[0] == slope.size:
        weight = site.call(torch.reshape, site.arg(1), (slope.size,))
        return site.call(functional.prelu, site.arg(0), weight)
    return site.call(prelu, site.arg(0), site.arg(1))


ROWS: Mapping[str, Row] = {
    **{op: _plain(function) for op, function in PLAIN.items()},
    "Celu": _celu,
    "Clip": _clip,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "Hardmax": _flattened(hardmax),
    "Identity": _identity,
    "IsInf": _is_inf,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _flattened(functional.log_softmax),
    "PRelu": _prelu,
    "Selu": _selu,
    "Shrink": _shrink,
    "Softmax": _flattened(functional.softmax),
    "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
}
