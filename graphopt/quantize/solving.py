"""Weights that give what was wanted from the inputs there are now, near the old ones.

How near is found out: weights are solved for on a part of the rows, drawn to the old ones more and
more strongly, and what does best on the other rows is taken, if only the old ones. Few rows for
many columns would otherwise be learned by heart. Matrices are (group, output, column).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["solve_again"]

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

_HELD = 5
"""One of so many rows is held out, the last ones: rows of one input lie together."""

_STRONGER = (1.0, 10.0, 100.0, 1000.0)
"""Factors of the damping that are tried."""


@dataclass(frozen=True, eq=False)
class _Moments:
    """Of some rows: mean products of inputs, and of inputs with what their outputs lack."""

    gram: Doubles
    cross: Doubles


def solve_again(
    matrix: Doubles,
    inputs: Floats,
    targets: Floats,
    bias: Doubles,
    damping: float,
    *,
    free: bool,
) -> tuple[Doubles, Doubles]:
    """The new matrix, and the damped second moments of the inputs that it was solved with.

    inputs     (group, row, column); targets (group, row, output), with the bias (group, output)
    damping    the least; part of the mean square of a column
    free       whether the bias takes up what is left on average, so that only what varies counts
    """
    held = inputs.shape[1] // _HELD
    shown, rest = slice(0, inputs.shape[1] - held), slice(inputs.shape[1] - held, None)
    first = _moments(matrix, inputs[:, shown], targets[:, shown], bias, free=free)
    tried = [damping * factor for factor in _STRONGER]
    if not held:
        return matrix, _damped(first.gram, tried[-1])
    other = _moments(matrix, inputs[:, rest], targets[:, rest], bias, free=free)
    losses = [_loss(_change(first, each), other) for each in tried]
    best = tried[int(np.argmin(losses))]
    share = held / inputs.shape[1]
    whole = _Moments(
        (1 - share) * first.gram + share * other.gram,
        (1 - share) * first.cross + share * other.cross,
    )
    change = _change(whole, best) if min(losses) < 0 else np.zeros_like(whole.cross)
    return np.asarray(matrix + change.transpose(0, 2, 1)), _damped(whole.gram, best)


def _moments(
    matrix: Doubles, inputs: Floats, targets: Floats, bias: Doubles, *, free: bool
) -> _Moments:
    left = targets - bias[:, np.newaxis].astype(np.float32)
    left -= inputs @ matrix.transpose(0, 2, 1).astype(np.float32)
    if free:
        inputs, left = (each - each.mean(axis=1, keepdims=True) for each in (inputs, left))
    turned = inputs.transpose(0, 2, 1)
    gram, cross = (
        (turned @ other).astype(np.float64) / inputs.shape[1] for other in (inputs, left)
    )
    return _Moments(gram, cross)


def _damped(gram: Doubles, damping: float) -> Doubles:
    mean = np.maximum(gram.diagonal(axis1=1, axis2=2).mean(axis=1), 1e-12)
    return np.asarray(gram + damping * mean[:, np.newaxis, np.newaxis] * np.eye(gram.shape[1]))


def _change(moments: _Moments, damping: float) -> Doubles:
    """What to add to the matrix, as (group, column, output); nothing where it cannot be told."""
    try:
        return np.asarray(np.linalg.solve(_damped(moments.gram, damping), moments.cross))
    except np.linalg.LinAlgError:
        return np.zeros_like(moments.cross)


def _loss(change: Doubles, moments: _Moments) -> float:
    """By how much a change alters the square error."""
    return float((change * (moments.gram @ change - 2 * moments.cross)).sum())
