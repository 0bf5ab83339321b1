"""Mean, variance and more of every index of one axis, summed up batch by batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Moments"]

_Floats = npt.NDArray[np.float64]


class Moments:
    """Merges batches without loss of precision (Chan, Golub and LeVeque 1979); keeps only sums."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._count = 0
        self._spread: _Floats = np.zeros(1)
        self._absolute: _Floats = np.zeros(1)
        self._zeros: _Floats = np.zeros(1)
        self.mean: _Floats = np.zeros(1)

    def update(self, array: np.ndarray) -> None:
        size = array.shape[self._axis]
        outer = int(np.prod(array.shape[: self._axis], dtype=np.int64))
        cube = array.astype(np.float32, copy=False).reshape(outer, size, -1)
        count = outer * cube.shape[2]
        mean = cube.mean(axis=(0, 2), dtype=np.float64)
        centred = cube - mean.astype(np.float32)[:, np.newaxis]
        spread = np.einsum("anb,anb->n", centred, centred).astype(np.float64)
        step, total = mean - self.mean, self._count + count
        self._spread = self._spread + spread + step**2 * (self._count * count / total)
        self.mean = self.mean + step * (count / total)
        self._absolute = self._absolute + np.abs(cube).sum(axis=(0, 2), dtype=np.float64)
        self._zeros = self._zeros + np.count_nonzero(cube == 0, axis=(0, 2))
        self._count = total

    @property
    def variance(self) -> _Floats:
        """The mean square of the distance to the mean."""
        return self._spread / self._count

    @property
    def mean_abs(self) -> _Floats:
        return self._absolute / self._count

    @property
    def zeros(self) -> _Floats:
        """The fraction of values that are exactly 0."""
        return self._zeros / self._count
