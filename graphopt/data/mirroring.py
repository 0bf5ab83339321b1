"""Every image of a data set once more, mirrored left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.data.dataset import Dataset, Source
from graphopt.data.inputs import InputSpec

__all__ = ["mirrored"]

_COLOURS = (1, 3, 4)


def mirrored(dataset: Dataset) -> Dataset:
    """Twice as many rows: inputs that are batches of images come again, mirrored.

    Images have four axes, with 1, 3 or 4 channels on axis 1 or on the last one; other inputs
    come again as they are.
    """
    source = _Mirrored(dataset.source, dataset.indices)
    return replace(
        dataset, source=source, spec=f"{dataset.spec}, mirrored", indices=np.arange(len(source))
    )


@dataclass(frozen=True, eq=False)
class _Mirrored:
    """Some rows of a source, and then the same rows mirrored."""

    source: Source
    rows: np.ndarray

    def __len__(self) -> int:
        return 2 * len(self.rows)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        turned = indices >= len(self.rows)
        found = self.source.read(self._own(indices))
        return {name: _flipped(array, turned) for name, array in found.items()}

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        return self.source.labels(self._own(indices))

    def bind(self, inputs: Sequence[InputSpec]) -> Source:
        return _Mirrored(self.source.bind(inputs), self.rows)

    def fingerprint(self, indices: np.ndarray) -> str:
        return f"{self.source.fingerprint(self._own(indices))} mirrored"

    def _own(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(self.rows[indices % len(self.rows)])


def _flipped(array: np.ndarray, turned: np.ndarray) -> np.ndarray:
    if array.ndim != 4 or len(array) != len(turned):
        return array
    if array.shape[1] in _COLOURS:
        axis = 3
    elif array.shape[3] in _COLOURS:
        axis = 2
    else:
        return array
    out = array.copy()
    out[turned] = np.flip(array[turned], axis)
    return out
