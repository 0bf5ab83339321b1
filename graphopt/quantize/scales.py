"""Grids for the weights of a layer: one per channel or block, with the least square error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from graphopt.ir import Array
from graphopt.quantize.grid import Format, Grid, largest, symmetric

__all__ = ["fit_grid"]

_SHRINK = 1 / 32
"""Parts of the range are tried in steps of so much: what lies outside is clamped, what lies inside
gets finer."""

_LEAST = 0.56
"""The part of the range that a grid spans at least."""

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
    """
    best: Grid | None = None
    lowest: Doubles | None = None
    for shrink in np.arange(1.0, _LEAST, -_SHRINK).tolist():
        grid = _grid(weight, format, axis, block, shrink, centred=centred)
        squares = np.square(weight.astype(np.float64) - grid.round(weight))
        loss = _sums(squares if importance is None else squares * importance, axis, block)
        if best is None or lowest is None:
            best, lowest = grid, loss
            continue
        better = loss < lowest
        best = replace(
            best,
            scale=np.where(better, grid.scale, best.scale),
            zero=np.where(better, grid.zero, best.zero),
        )
        lowest = np.where(better, loss, lowest)
    assert best is not None, "some part of the range was tried"
    return best


def _grid(
    weight: Array,
    format: Format,  # noqa: A002
    axis: int,
    block: int,
    shrink: float,
    *,
    centred: bool,
) -> Grid:
    if centred:
        return symmetric(largest(weight, axis, block) * np.float32(shrink), format, axis, block)
    low = -largest(np.minimum(weight, 0), axis, block).astype(np.float64) * shrink
    high = largest(np.maximum(weight, 0), axis, block).astype(np.float64) * shrink
    steps = format.high - format.low
    even = symmetric((high - low) / 2, format, axis, block).scale.astype(np.float64)
    scale = np.maximum((high - low) / steps, even.min(initial=np.inf) / steps)
    zero = np.clip(np.rint(format.low - low / scale), format.low, format.high)
    return Grid(scale.astype(np.float32), zero.astype(format.dtype), format, axis, block)


def _sums(values: Doubles, axis: int, block: int) -> Doubles:
    """Sums over what shares a scale."""
    if block:
        starts = np.arange(0, values.shape[axis], block)
        return np.asarray(np.add.reduceat(values, starts, axis))
    others = tuple(other for other in range(values.ndim) if other != axis)
    return np.asarray(values.sum(axis=others))
