"""Round the weights of a layer one column after the other, making up for each error in the next.

Frantar et al. 2022: with H the second moments of what the layer reads, the error of a column is
spread over the columns still to come by the inverse of H, whose Cholesky factor has all that is
needed. Columns that matter most come first; grids are fixed before. Matrices are (output, column).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cholesky
from scipy.linalg.lapack import dtrtri

__all__ = ["sweep"]

Doubles = npt.NDArray[np.float64]

_BLOCK = 128
"""Columns whose errors are spread one by one; all later columns learn of them at once."""


def sweep(
    matrix: Doubles,
    moments: Doubles,
    scale: Doubles,
    zero: Doubles,
    limits: tuple[int, int],
    damping: float,
) -> Doubles:
    """The codes of a matrix; `scale` and `zero` have its shape.

    Raises LinAlgError where the moments are singular in spite of the damping.
    """
    order = np.argsort(-moments.diagonal(), kind="stable")
    factor = _factor(moments, order, damping)
    left = matrix[:, order]
    scale, zero = scale[:, order], zero[:, order]
    codes = np.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        stop = min(start + _BLOCK, left.shape[1])
        errors = np.empty((len(left), stop - start))
        for column in range(start, stop):
            steps = np.rint(left[:, column] / scale[:, column]) + zero[:, column]
            codes[:, column] = np.clip(steps, *limits)
            made = (codes[:, column] - zero[:, column]) * scale[:, column]
            error = (left[:, column] - made) / factor[column, column]
            left[:, column + 1 : stop] -= np.outer(error, factor[column, column + 1 : stop])
            errors[:, column - start] = error
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    placed = np.empty_like(codes)
    placed[:, order] = codes
    return placed


def _factor(moments: Doubles, order: npt.NDArray[np.intp], damping: float) -> Doubles:
    """The upper Cholesky factor of the inverse of the damped moments, of columns in this order.

    Made in place of one copy of the moments, which are large.
    """
    # inv(H) = U'U with U upper: the factor of H with rows and columns reversed, inverted.
    damped = moments[np.ix_(order[::-1], order[::-1])]
    diagonal = damped.diagonal()
    mean = float(diagonal.mean()) or 1.0
    damped[np.diag_indices_from(damped)] += np.where(diagonal > 0, damping * mean, mean)
    lower = cholesky(damped.T, lower=True, overwrite_a=True)
    inverse, failed = dtrtri(lower, lower=1, overwrite_c=1)
    if failed:
        raise LinAlgError("the moments are singular")
    return np.asarray(inverse[::-1, ::-1])
