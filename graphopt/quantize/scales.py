"""Grids for the weights of a layer: one per channel or block, with the least square error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.ir import Array
from graphopt.quantize.grid import Floats, Format, Grid, largest, symmetric

__all__ = ["fit_grid"]

_SHRINK = 1 / 32
"""Parts of the range are tried in steps of so much: what lies outside is clamped, what lies inside
gets finer."""

_LEAST = 0.56
"""The part of the range that a grid spans at least."""

_SLAB = 1 << 16
"""Elements of a weight that are tried at once."""

Doubles = npt.NDArray[np.float64]


def fit_grid(
    weight: Array,
    format: Format,  # noqa: A002
    axis: int,
    block: int = 0,
    *,
    centred: bool = True,
    importance: Doubles | None = None,
) -> Grid:
    """The grid of each index of `axis`, or of each block on it, that loses least of a weight.

    `centred` grids have zero in the middle; others fit the least and largest value. `importance`,
    in a shape that broadcasts against the weight, says how much the square of an error counts.
    What that takes beside the scales tried does not grow with the weight.
    """
    whole = _Range(format, axis, block, _ends(weight, axis, block, centred=centred))
    tried = [whole.grid(part) for part in np.arange(1.0, _LEAST, -_SHRINK).tolist()]
    scale, zero = tried[0].scale.copy(), tried[0].zero.copy()
    for part in _slabs(weight.shape, axis, block):
        values = weight[part].astype(np.float64)
        weights = None if importance is None else np.broadcast_to(importance, weight.shape)[part]
        own = part if block else part[axis]
        lowest: Doubles | None = None
        for grid in tried:
            steps, origins = grid.scale[own], grid.zero[own]
            made = Grid(steps, origins, format, axis, block).round(weight[part])
            squares = np.square(values - made)
            loss = _sums(squares if weights is None else squares * weights, axis, block)
            better = np.ones(loss.shape, bool) if lowest is None else loss < lowest
            scale[own], zero[own] = (
                np.where(better, new, old)
                for new, old in ((steps, scale[own]), (origins, zero[own]))
            )
            lowest = loss if lowest is None else np.where(better, loss, lowest)
    return Grid(scale, zero, format, axis, block)


def _slabs(shape: tuple[int, ...], axis: int, block: int) -> Iterator[tuple[slice, ...]]:
    """Parts of a weight that fit in a processor's cache, and cut through nothing with one scale."""
    along = int(axis == 0) if block else axis
    each = math.prod(shape) // max(shape[along], 1)
    step = max(1, _SLAB // max(each, 1))
    for start in range(0, shape[along], step):
        yield (slice(None),) * along + (slice(start, start + step),)


@dataclass(frozen=True, eq=False)
class _Range:
    """The ends of what shares a scale; one array, the largest magnitude, for centred grids."""

    format: Format
    axis: int
    block: int
    ends: tuple[Floats, ...]

    def grid(self, part: float) -> Grid:
        """The grid that spans a part of the range."""
        form, axis, block = self.format, self.axis, self.block
        if len(self.ends) == 1:
            return symmetric(self.ends[0] * np.float32(part), form, axis, block)
        low, high = (end.astype(np.float64) * part for end in self.ends)
        steps = form.high - form.low
        even = symmetric((high - low) / 2, form, axis, block).scale.astype(np.float64)
        scale = np.maximum((high - low) / steps, even.min(initial=np.inf) / steps)
        zero = np.clip(np.rint(form.low - low / scale), form.low, form.high)
        return Grid(scale.astype(np.float32), zero.astype(form.dtype), form, axis, block)


def _ends(weight: Array, axis: int, block: int, *, centred: bool) -> tuple[Floats, ...]:
    if centred:
        return (largest(weight, axis, block),)
    low, high = (largest(end(weight, 0), axis, block) for end in (np.minimum, np.maximum))
    return -low, high


def _sums(values: Doubles, axis: int, block: int) -> Doubles:
    """Sums over what shares a scale."""
    if block:
        starts = np.arange(0, values.shape[axis], block)
        return np.asarray(np.add.reduceat(values, starts, axis))
    others = tuple(other for other in range(values.ndim) if other != axis)
    return np.asarray(values.sum(axis=others))
