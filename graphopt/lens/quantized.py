"""Lowerings of quantization: what a DequantizeLinear reads from a QuantizeLinear stays a float.

Such a pair is a fake quantization. Its gradient is passed through the rounding and stopped where
values were clamped. Integers that others read are computed exactly, without a gradient.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import numpy as np
import torch
from torch import fx

from graphopt.lens.casts import cast_float8
from graphopt.lens.convolution import convolve, kernel_of
from graphopt.lens.dtypes import integer_range, is_whole
from graphopt.lens.site import Emitted, Row, Site
from graphopt.lens.windows import Window, window_of

__all__ = ["ROWS"]


def spread(values: torch.Tensor, x: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """Scales or zero points in a shape that broadcasts against `x`."""
    if values.dim() == 0 or values.numel() == 1:
        return values.reshape([1] * x.dim() if x.dim() else [])
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if values.dim() > 1:
        return values
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def levels(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    axis: int,
    block: int,
    limits: tuple[int, int],
) -> torch.Tensor:
    """Steps from the zero point, rounded and clamped, as floats; rounding passes gradients."""
    factor = spread(scale, x, axis, block)
    low, high = float(limits[0]), float(limits[1])
    steps = x.to(factor.dtype) / factor
    if zero is None:
        held = steps.clamp(low, high)
    else:
        origin = spread(zero, x, axis, block).to(factor.dtype)
        held = torch.minimum(torch.maximum(steps, low - origin), high - origin)
    return held + (held.round() - held).detach()


def fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    scale_back: torch.Tensor,
    axis: int,
    block: int,
    limits: tuple[int, int],
) -> torch.Tensor:
    """Quantize and dequantize."""
    steps = levels(x, scale, zero, axis, block, limits)
    return steps * spread(scale_back, x, axis, block)


def quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    axis: int,
    block: int,
    limits: tuple[int, int],
    to: torch.dtype,
) -> torch.Tensor:
    """Quantize to integers."""
    steps = levels(x, scale, zero, axis, block, limits).detach()
    if zero is not None:
        steps = steps + spread(zero, x, axis, block).to(steps.dtype)
    return steps.to(torch.int64).to(to)


def quantize_float8(
    x: torch.Tensor, scale: torch.Tensor, axis: int, block: int, to: torch.dtype, *, saturate: bool
) -> torch.Tensor:
    return cast_float8(x / spread(scale, x, axis, block), to, saturate=saturate)


def dequantize(
    x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, axis: int, block: int
) -> torch.Tensor:
    """Integers (or 8-bit floats) back to floats."""
    factor = spread(scale, x, axis, block)
    if zero is None or zero.is_floating_point():
        return x.to(factor.dtype) * factor
    return (x.to(torch.int64) - spread(zero, x, axis, block)).to(factor.dtype) * factor


def _quantize_linear(site: Site) -> fx.Node:
    axis, block = site.integer("axis", 1), site.integer("block_size", 0)
    dtype = _quantized_type(site)
    to = site.torch_type(dtype)
    x, scale, zero = site.arg(0), site.arg(1), site.optional(2)
    if not is_whole(dtype):
        saturate = site.flag("saturate", default=True)
        return site.call(quantize_float8, x, scale, axis, block, to, saturate=saturate)
    return site.call(quantize, x, scale, zero, axis, block, integer_range(dtype), to)


def _quantized_type(site: Site) -> np.dtype[np.generic]:
    found = site.out_dtype() or site.dtype(2)
    return np.dtype(np.uint8) if found is None else found


def _dequantize_linear(site: Site) -> fx.Node:
    axis, block = site.integer("axis", 1), site.integer("block_size", 0)
    paired = _quantizer(site)
    if paired is None:
        zero = site.optional(2)
        return site.call(dequantize, site.arg(0), site.arg(1), zero, axis, block)
    first = paired.arg(0), paired.arg(1), paired.optional(2)
    limits = integer_range(_quantized_type(paired))
    own = paired.integer("axis", 1), paired.integer("block_size", 0)
    return site.call(fake_quantize, *first, site.arg(1), *own, limits)


def _quantizer(site: Site) -> Site | None:
    """The QuantizeLinear that a DequantizeLinear undoes."""
    producer = site.graph.producer(site.name(0))
    if producer is None or producer.op != "QuantizeLinear":
        return None
    other = Site(producer, site.around)
    same_zero = site.name(2) == other.name(2) or _equal(site.constant(2), other.constant(2))
    same_axis = site.integer("axis", 1) == other.integer("axis", 1)
    same_block = site.integer("block_size", 0) == other.integer("block_size", 0)
    if not (same_zero and same_axis and same_block and is_whole(_quantized_type(other))):
        return None
    return other


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return False
    return bool(np.array_equal(a, b))


def dynamic_quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantize to 8 bits by the range of the tensor itself."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = ((high - low) / 255).to(x.dtype)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((-low / scale).clamp(0, 255))
    steps = (torch.round(x / scale) + zero).clamp(0, 255)
    return steps.to(torch.uint8), scale, zero.to(torch.uint8)


def _dynamic_quantize_linear(site: Site) -> Emitted:
    return site.unpack(site.call(dynamic_quantize, site.arg(0)), 3)


def rows_of(zero: torch.Tensor | None) -> torch.Tensor | int:
    """A left operand's zero point: one, or one per row."""
    if zero is None:
        return 0
    return zero.to(torch.float64).unsqueeze(-1) if zero.dim() == 1 else zero.to(torch.float64)


def integer_matmul(
    a: torch.Tensor, b: torch.Tensor, a_zero: torch.Tensor | None, b_zero: torch.Tensor | None
) -> torch.Tensor:
    """An exact product of integers less their zero points (double precision holds 53 bits)."""
    right = 0 if b_zero is None else b_zero.to(torch.float64)
    left = rows_of(a_zero)
    return torch.matmul(a.to(torch.float64) - left, b.to(torch.float64) - right)


def integer_matmul_32(
    a: torch.Tensor, b: torch.Tensor, a_zero: torch.Tensor | None, b_zero: torch.Tensor | None
) -> torch.Tensor:
    return integer_matmul(a, b, a_zero, b_zero).to(torch.int32)


def _matmul_integer(site: Site) -> fx.Node:
    return site.call(
        integer_matmul_32, site.arg(0), site.arg(1), site.optional(2), site.optional(3)
    )


def requantize(
    product: torch.Tensor,
    factor: torch.Tensor,
    zero: torch.Tensor,
    limits: tuple[int, int],
) -> torch.Tensor:
    """Exact products to integers of another scale."""
    steps = torch.round((product * factor).to(torch.float32)) + zero.to(torch.float32)
    return steps.clamp(*limits).to(zero.dtype)


def quantized_matmul(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    limits: tuple[int, int],
) -> torch.Tensor:
    left = a_scale.unsqueeze(-1) if a_scale.dim() == 1 and a_scale.numel() > 1 else a_scale
    if a_zero.dim() == 1 and a_zero.numel() == 1:
        a_zero = a_zero.reshape(())
    product = integer_matmul(a, b, a_zero, b_zero)
    return requantize(product, (left * b_scale / scale).to(torch.float64), zero, limits)


def _qlinear_matmul(site: Site) -> fx.Node:
    return site.call(quantized_matmul, *site.args(), integer_range(_out_type(site, 7)))


def _out_type(site: Site, zero: int) -> np.dtype[np.generic]:
    found = site.dtype(zero) or site.out_dtype()
    if found is None:
        site.refuse("the type of its zero point is not known")
    return found


def integer_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    x_zero: torch.Tensor | None,
    w_zero: torch.Tensor | None,
    *,
    window: Window,
    groups: int,
) -> torch.Tensor:
    """An exact convolution of integers less their zero points; padding is the zero point."""
    left = x.to(torch.float64)
    right = weight.to(torch.float64)
    if x_zero is not None:
        left = left - x_zero.to(torch.float64)
    if w_zero is not None:
        right = right - w_zero.to(torch.float64).reshape(-1, *[1] * (weight.dim() - 1))
    return convolve(left, right, window=window, groups=groups)


def _conv_integer(site: Site) -> fx.Node:
    window = window_of(site, kernel_of(site, 1))
    args = site.arg(0), site.arg(1), site.optional(2), site.optional(3)
    made = site.bound(integer_convolution, *args, window=window, groups=site.integer("group", 1))
    return site.call(torch.Tensor.to, made, torch.int32)


def channel_factor(x_scale: torch.Tensor, w_scale: torch.Tensor, scale: torch.Tensor,
                   axes: int) -> torch.Tensor:  # fmt: skip
    """The scale of products over the scale of outputs, per output channel."""
    factor = (x_scale * w_scale / scale).to(torch.float64)
    return factor.reshape(-1, *[1] * axes) if factor.numel() > 1 else factor.reshape(())


def _qlinear_conv(site: Site) -> fx.Node:
    window = window_of(site, kernel_of(site, 3))
    args = site.arg(0), site.arg(3), site.arg(2), site.arg(5)
    product = site.bound(integer_convolution, *args, window=window, groups=site.integer("group", 1))
    axes = len(window.kernel)
    if site.has(8):
        shift = site.call(torch.reshape, site.arg(8), (-1, *[1] * axes))
        product = site.call(operator.add, product, shift)
    factor = site.call(channel_factor, site.arg(1), site.arg(4), site.arg(6), axes)
    limits = integer_range(_out_type(site, 7))
    return site.call(requantize, product, factor, site.arg(7), limits)


ROWS: Mapping[str, Row] = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize_linear,
    "DynamicQuantizeLinear": _dynamic_quantize_linear,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize_linear,
}
