"""Whether sums of two products fit 16 bits, as processors without VNNI instructions need them to.

There `vpmaddubsw` multiplies unsigned with signed bytes and adds neighbouring products with
saturation at 16 bits, before 32-bit sums take over. VNNI adds in 32 bits at once. A layer gives
equal results on both if no two of an output channel's weights can saturate, in whatever order a
kernel packs them, and whatever the inputs' codes are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graphopt.ir import Array
from graphopt.quantize.grid import Floats

__all__ = ["pair_sums", "portable_bounds", "saturating"]

_MOST_CODE = 255
_LOW, _HIGH = -(2**15), 2**15 - 1
_MOST_PAIR = _HIGH // _MOST_CODE
"""Two weights of one sign may add up to so many steps."""


def pair_sums(weight: Array, axis: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The least and the largest sum of two weights of each index of `axis`.

    Only weights of one sign are added: an input of 0 leaves out the other.
    """
    rows = np.moveaxis(weight.astype(np.float64), axis, 0).reshape(weight.shape[axis], -1)
    if rows.shape[1] < 2:
        rows = np.pad(rows, ((0, 0), (0, 2 - rows.shape[1])))
    ordered = np.sort(rows, axis=1)
    least = np.minimum(ordered[:, :2], 0).sum(axis=1)
    most = np.maximum(ordered[:, -2:], 0).sum(axis=1)
    return least, most


def saturating(codes: Array, axis: int) -> npt.NDArray[np.bool_]:
    """Which output channels of stored weights can saturate."""
    least, most = pair_sums(codes, axis)
    return np.asarray((most * _MOST_CODE > _HIGH) | (least * _MOST_CODE < _LOW))


def portable_bounds(weight: Array, axis: int, levels: int) -> Floats:
    """What the largest magnitude of each channel must be taken for, so that no pair saturates.

    `levels` is the format's largest code. Rounding moves each weight by half a step at most, which
    leaves one step less for a pair.
    """
    least, most = pair_sums(weight, axis)
    step = np.maximum(most, -least) / (_MOST_PAIR - 1)
    return np.asarray(step * levels, np.float32)
