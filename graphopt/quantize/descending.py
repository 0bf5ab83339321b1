"""Codes of a layer that no single change makes better, and the scales that suit them best.

With H the second moments of what a layer reads, its square error is (W - S C)' H (W - S C). For one
column of codes C with all others fixed, and for the scale S of an output with its codes fixed, the
least is known in closed form. Taken in turn they can only lower the error. Matrices are
(group, output, column), moments (group, column, column).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["descend"]

Doubles = npt.NDArray[np.float64]

_BLOCK = 64
"""Columns whose slopes are computed together, and kept up to date among themselves."""

_SWEEPS = 8
"""Times over all columns for one set of scales; mostly nothing changes any more before."""

_ROUNDS = 4
"""Times that scales are fitted anew."""


def descend(
    codes: Doubles,
    matrix: Doubles,
    moments: Doubles,
    scale: Doubles,
    zero: Doubles,
    limits: tuple[int, int],
    *,
    fit_scale: bool,
) -> tuple[Doubles, Doubles]:
    """Better codes, and scales, which are one for each output if `fit_scale`."""
    codes, scale = codes.copy(), scale.copy()
    for _ in range(_ROUNDS):
        changed = False
        for _ in range(_SWEEPS):
            if not _sweep(codes, matrix, moments, scale, zero, limits):
                break
            changed = True
        if not fit_scale:
            break
        scale = _fitted(codes - zero, matrix, moments, scale)
        if not changed:
            break
    return codes, scale


def _sweep(
    codes: Doubles,
    matrix: Doubles,
    moments: Doubles,
    scale: Doubles,
    zero: Doubles,
    limits: tuple[int, int],
) -> bool:
    """Give each column in turn the best codes, in place; whether any changed."""
    error = (codes - zero) * scale - matrix
    curvature = moments.diagonal(axis1=1, axis2=2)
    changed = False
    for start in range(0, codes.shape[2], _BLOCK):
        stop = min(start + _BLOCK, codes.shape[2])
        slopes = error @ moments[:, :, start:stop]
        for column in range(start, stop):
            steps = curvature[:, np.newaxis, column] * scale[..., column]
            move = np.divide(-slopes[..., column - start], steps, where=steps > 0,
                             out=np.zeros_like(steps))  # fmt: skip
            best = np.clip(np.rint(codes[..., column] + move), *limits)
            shift = (best - codes[..., column]) * scale[..., column]
            if not shift.any():
                continue
            changed = True
            codes[..., column] = best
            error[..., column] += shift
            slopes += shift[..., np.newaxis] * moments[:, np.newaxis, column, start:stop]
    return changed


def _fitted(steps: Doubles, matrix: Doubles, moments: Doubles, scale: Doubles) -> Doubles:
    """The scale of each output with the least error; as it was where that is not positive."""
    weighed = steps @ moments
    wanted = (weighed * matrix).sum(axis=2, keepdims=True)
    found = (weighed * steps).sum(axis=2, keepdims=True)
    best = np.divide(wanted, found, where=found > 0, out=np.zeros_like(wanted))
    return np.where(best > 0, np.broadcast_to(best, scale.shape), scale)
