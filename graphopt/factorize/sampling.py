"""What layers multiply their weights with, seen on calibration inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graphopt.errors import DataError
from graphopt.factorize.kernels import Doubles, Kernel
from graphopt.refit.frontier import Frontier
from graphopt.refit.layers import Floats, find_layer

__all__ = ["Sample", "sample_of"]

_DAMPING = 1e-4
"""Of the mean second moment: what no input showed may still matter a little."""

_LEAST = 4096
_PER_COLUMN = 2
"""Rows: at least so many, and so many for each weight of an output."""

_MOST = 1 << 28
"""Values of all rows together, a gigabyte, whatever would be wanted."""

_JUDGED = 2048

_LARGEST = 1e13
"""Squares of larger values, and of sums of products of them with weights, leave single precision.
"""


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows (group, row, in * taps) less their mean (group, in * taps)."""

    rows: Floats
    mean: Doubles

    def moment(self, axes: tuple[int, ...], shape: tuple[int, ...]) -> Doubles:
        """Second moments (group, column, column) over some axes of (in, taps...), damped.

        All other axes are summed over.
        """
        cube = self.rows.reshape(*self.rows.shape[:2], *shape)
        last = np.moveaxis(cube, [axis + 2 for axis in axes], list(range(-len(axes), 0)))
        width = int(np.prod([shape[axis] for axis in axes]))
        flat = np.ascontiguousarray(last).reshape(len(cube), -1, width)
        moment = (flat.transpose(0, 2, 1) @ flat).astype(np.float64) / self.rows.shape[1]
        ridge = _DAMPING * np.trace(moment, axis1=1, axis2=2) / width
        return np.asarray(moment + (ridge[:, np.newaxis, np.newaxis] + 1e-30) * np.eye(width))

    def sums(self, matrix: Doubles) -> Doubles:
        """Second moments (group, out, out) of what a matrix (group, out, column) makes of the rows.

        Damped likewise: W M W' for the moments M of all axes, which wide layers have no room for.
        """
        made = self.rows @ matrix.transpose(0, 2, 1).astype(np.float32)
        moment = (made.transpose(0, 2, 1) @ made).astype(np.float64) / self.rows.shape[1]
        energy = np.einsum("grc,grc->g", self.rows, self.rows, dtype=np.float64)
        ridge = _DAMPING * energy / self.rows[0].size + 1e-30
        return np.asarray(
            moment + ridge[:, np.newaxis, np.newaxis] * (matrix @ matrix.transpose(0, 2, 1))
        )

    def judge(self, wanted: Doubles) -> Callable[[Doubles], float]:
        """From a kernel to the error of its sums relative to their variance, the bias mended.

        Judged on some of the rows.
        """
        rows = self.rows[:, :: max(1, self.rows.shape[1] // _JUDGED)]
        sums = rows @ _turned(wanted)
        energy = max(float(np.sum(sums**2)), 1e-30)

        def error(made: Doubles) -> float:
            return float(np.sum((rows @ _turned(made) - sums) ** 2)) / energy

        return error

    def shift(self, wanted: Doubles, made: Doubles) -> Doubles:
        """What the bias has to make up for."""
        off = (wanted - made).reshape(*wanted.shape[:2], -1)
        return np.asarray(np.einsum("goc,gc->go", off, self.mean).reshape(-1))


def _turned(kernel: Doubles) -> Floats:
    """(group, in * taps, out)"""
    flat = kernel.reshape(*kernel.shape[:2], -1).transpose(0, 2, 1)
    return flat.astype(np.float32)


def sample_of(kernel: Kernel, walk: Frontier, seed: int) -> Sample | None:
    """Sample what a layer reads; None where that cannot be had in rows.

    Raises DataError for values that are not finite, or as good as that.
    """
    layer = find_layer(walk.graph, kernel.node)
    if layer is None:
        return None
    columns = kernel.inputs * layer.taps
    wanted = max(_LEAST, _PER_COLUMN * columns)
    wanted = max(1, min(wanted, _MOST // (kernel.groups * columns)))
    each = -(-wanted // max(len(walk.dataset), 1))
    rng = np.random.default_rng(seed)
    found, seen = [], 0
    for batch in walk.batches([layer.data]):
        if seen < wanted:  # the walk goes on to its end, so that what it read is held
            data = batch[layer.data]
            found.append(layer.rows(data, layer.places(data, each, rng))[:, :, :columns])
            seen += found[-1].shape[1]
    rows = np.concatenate(found, axis=1)
    mean = rows.mean(axis=1, dtype=np.float64)
    if kernel.node.op == "MatMul":
        mean = np.zeros_like(mean)  # there is no bias that could make up for it
    rows -= mean[:, np.newaxis].astype(np.float32)
    if not np.abs(rows).max(initial=0.0) < _LARGEST:
        raise DataError(
            f"factorize: tensor {layer.data!r} holds values so large that their squares overflow; "
            "look at the data and at the weights before it, or leave the data out"
        )
    return Sample(rows, mean)
