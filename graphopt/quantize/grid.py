"""Number grids: which scale and zero point stand for which integers, and rounding to them.

A value x is stored as the integer q = clamp(round(x / scale) + zero, low, high) and read back as
scale * (q - zero). Rounding is half to even, in float32, as ONNX's QuantizeLinear does it.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from graphopt.ir import Array

__all__ = [
    "BIAS",
    "INT4",
    "INT8",
    "INT8_FULL",
    "UINT4",
    "UINT8",
    "Floats",
    "Format",
    "Grid",
    "asymmetric",
    "largest",
    "symmetric",
]

Floats = npt.NDArray[np.float32]

_RELATIVE_FLOOR = 2.0**-20
"""Channels smaller than this part of the largest one share the step of a channel of that size."""

_FLOOR = 2.0**-60
"""The smallest step: products of two of them are still normal float32 numbers."""


@dataclass(frozen=True)
class Format:
    """An integer type, and the part of its range that is used."""

    dtype: np.dtype[np.generic]
    low: int
    high: int

    def narrowed(self, bits: int) -> Format:
        """The same type with the range of a type of `bits` bits: symmetric if it has a sign."""
        if self.low < 0:
            return Format(self.dtype, 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
        return Format(self.dtype, 0, 2**bits - 1)


UINT8 = Format(np.dtype(np.uint8), 0, 255)
INT8 = Format(np.dtype(np.int8), -127, 127)
"""For weights: symmetric, so that negating a weight negates its code."""
INT8_FULL = Format(np.dtype(np.int8), -128, 127)
"""For activations."""
UINT4 = Format(np.dtype(ml_dtypes.uint4), 0, 15)
INT4 = Format(np.dtype(ml_dtypes.int4), -7, 7)
BIAS = Format(np.dtype(np.int32), 1 - 2**31, 2**31 - 1)
"""For biases."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Scales and zero points of a tensor, as QuantizeLinear and DequantizeLinear take them.

    scale    float32, shape () for the whole tensor, (n,) for the n indices of `axis`, or the
             tensor's own shape with `axis` divided by `block` (rounded up)
    zero     of the format's type, shaped as `scale`
    block    how many neighbours on `axis` share a scale; 0 where no blocks are made
    """

    scale: Floats
    zero: Array
    format: Format
    axis: int | None = None
    block: int = 0

    def quantize(self, x: Array) -> Array:
        """The codes of finite values."""
        return np.asarray(self._codes(x).astype(self.format.dtype))

    def _codes(self, x: Array) -> npt.NDArray[np.floating]:
        """The codes as floats of a precision that has them all."""
        wide = np.float64 if self.format.dtype.itemsize > 2 else np.float32
        steps = np.rint(x.astype(wide) / self.spread(self.scale, x.shape).astype(wide))
        steps += self.spread(self.zero, x.shape).astype(wide)
        return np.asarray(np.clip(steps, self.format.low, self.format.high))

    def dequantize(self, codes: Array) -> Floats:
        """The values that codes stand for."""
        wide = np.int64 if self.format.dtype.itemsize > 2 else np.int32
        steps = codes.astype(wide) - self.spread(self.zero, codes.shape).astype(wide)
        scale = self.spread(self.scale, codes.shape)
        return np.asarray(steps.astype(np.float32) * scale, np.float32)

    def round(self, x: Array) -> Floats:
        """The nearest values on the grid: what codes are read back as, without making them."""
        codes = self._codes(x)
        steps = codes - self.spread(self.zero, x.shape).astype(codes.dtype)
        scale = self.spread(self.scale, x.shape).astype(np.float32, copy=False)
        return np.asarray(steps.astype(np.float32) * scale, np.float32)

    def limits(self) -> tuple[Floats, Floats]:
        """The least and the largest value on the grid, shaped as `scale`."""
        zero = self.zero.astype(np.float32)
        return (self.format.low - zero) * self.scale, (self.format.high - zero) * self.scale

    def spread(self, values: Array, shape: tuple[int, ...]) -> Array:
        """Scales or zero points, in a shape that broadcasts against a tensor of `shape`."""
        if self.axis is None:
            return values
        if self.block:
            whole = np.repeat(values, self.block, self.axis)
            return whole[(slice(None),) * self.axis + (slice(shape[self.axis]),)]
        return values.reshape([-1 if axis == self.axis else 1 for axis in range(len(shape))])


def asymmetric(low: float, high: float, kind: Format = UINT8) -> Grid:
    """The grid of a whole tensor whose values lie in [low, high]; 0 is on it."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = np.float32(max((high - low) / (kind.high - kind.low), _FLOOR))
    zero = np.rint(kind.low - low / float(scale))
    kept = np.clip(zero, kind.low, kind.high).astype(kind.dtype)
    return Grid(np.array(scale), np.array(kept), kind)


def symmetric(
    bound: npt.ArrayLike, kind: Format = INT8, axis: int | None = None, block: int = 0
) -> Grid:
    """The grid of values in [-bound, bound], with the zero point in the middle of the range.

    `bound` is shaped as the scale is to be. A channel that is all zero, or nearly so beside the
    others, gets a step that is safe to multiply and divide by.
    """
    bounds = np.abs(np.asarray(bound, np.float64))
    middle = (kind.low + kind.high + 1) // 2
    largest_bound = float(bounds.max(initial=0.0))
    floor = max(largest_bound * _RELATIVE_FLOOR, (kind.high - middle) * _FLOOR)
    scale = np.maximum(bounds, floor) / (kind.high - middle)
    zero = np.full(scale.shape, middle).astype(kind.dtype)
    return Grid(np.asarray(scale, np.float32), zero, kind, axis, block)


def largest(x: Array, axis: int | None = None, block: int = 0) -> Floats:
    """The largest magnitude of a whole tensor, of each index of `axis`, or of each block on it."""
    magnitudes = np.abs(x.astype(np.float32))
    if axis is None:
        return np.asarray(magnitudes.max(initial=0.0), np.float32)
    if block:
        starts = np.arange(0, x.shape[axis], block)
        return np.asarray(np.maximum.reduceat(magnitudes, starts, axis), np.float32)
    others = tuple(other for other in range(x.ndim) if other != axis)
    return np.asarray(magnitudes.max(axis=others, initial=0.0), np.float32)
