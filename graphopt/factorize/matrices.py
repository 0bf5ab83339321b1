"""Kernels as matrices: truncated singular value decompositions of two unfoldings.

Kernels are (group, out, in, taps...); groups are factorized alike, each for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from graphopt.factorize.kernels import Chain, Doubles, Kernel, Part
from graphopt.factorize.pieces import (
    Decomposition,
    Ranks,
    along_axes,
    bare,
    leading,
    left_out,
    pointwise,
    spectrum,
)
from graphopt.factorize.sampling import Sample

__all__ = ["channel", "channel_parts", "projected", "spatial", "spatial_parts", "summed"]


def _leading_rows(
    matrix: Doubles, moments: Callable[[Doubles], Doubles]
) -> tuple[Doubles, Doubles]:
    """The energies of a matrix' rows together (group, component), and their directions.

    `moments` gives a matrix (group, row, column) the second moments of its rows. Of a matrix with
    more rows than columns they are never formed: R of its QR decomposition has the same energies.
    """
    turn: Doubles | None = None
    if matrix.shape[1] > matrix.shape[2]:
        turn, matrix = np.linalg.qr(matrix)
    energies, directions = leading(moments(matrix))
    return energies, directions if turn is None else turn @ directions


def _plain(matrix: Doubles) -> Doubles:
    """Second moments of rows whose columns count alike."""
    return np.asarray(matrix @ matrix.transpose(0, 2, 1))


class _Cut:
    """A matrix (group, row, column) cut at any rank into its leading directions and the rest.

    What was multiplied for one rank serves for the next.
    """

    def __init__(self, matrix: Doubles, basis: Doubles) -> None:
        self._matrix, self._basis = matrix, basis
        self._rows = np.empty((len(matrix), 0, matrix.shape[2]))

    def __call__(self, rank: int) -> tuple[Doubles, Doubles]:
        """Directions (group, row, component), and what they are multiplied with."""
        known = self._rows.shape[1]
        if rank > known:
            more = self._basis[:, :, known:rank].transpose(0, 2, 1) @ self._matrix
            self._rows = np.concatenate([self._rows, more], axis=1)
        return self._basis[:, :, :rank], self._rows[:, :rank]


# ---- svd and channel: fewer outputs, then a product at each place ----------------------------


def summed(kernel: Kernel) -> int:
    """The other side of that matrix: all taps of the inputs, or of a transposed one's outputs."""
    ends = kernel.outputs if kernel.node.op == "ConvTranspose" else kernel.inputs
    return ends * math.prod(kernel.taps)


def projected(kernel: Kernel) -> int:
    """The channels of a group of which a chain makes fewer."""
    return kernel.inputs if kernel.node.op == "ConvTranspose" else kernel.outputs


def channel_parts(kernel: Kernel, ranks: Ranks) -> tuple[Part, ...]:
    (rank,) = ranks
    done = (True,) * len(kernel.taps)
    wide = kernel.groups * rank * summed(kernel)
    narrow = kernel.groups * rank * projected(kernel)
    if kernel.node.op == "ConvTranspose":
        return Part(narrow, (False,) * len(kernel.taps)), Part(wide, done, scatters=True)
    return Part(wide, done), Part(narrow, done)


def channel(kernel: Kernel, sample: Sample | None) -> Decomposition:
    """Project the outputs to where most of their energy is (Zhang et al. 2016).

    A transposed convolution's inputs are projected instead.
    """
    if kernel.node.op == "ConvTranspose":
        return _transposed_channel(kernel)
    matrix = kernel.tensor.reshape(kernel.groups, kernel.outputs, -1)
    energies, basis = _leading_rows(matrix, _plain if sample is None else sample.sums)
    cut = _Cut(matrix, basis)

    def build(ranks: Ranks, rounds: int) -> Chain:
        outer, inner = cut(ranks[0])
        tensor = inner.reshape(*inner.shape[:2], kernel.inputs, *kernel.taps)
        steps = bare(kernel, tensor), pointwise(kernel, outer)
        return Chain(steps, lambda: (outer @ inner).reshape(kernel.shape))

    return Decomposition((spectrum(energies),), build, left_out(energies))


def _transposed_channel(kernel: Kernel) -> Decomposition:
    turned = kernel.tensor.swapaxes(1, 2)
    matrix = turned.reshape(kernel.groups, kernel.inputs, -1)
    energies, basis = _leading_rows(matrix, _plain)
    cut = _Cut(matrix, basis)

    def build(ranks: Ranks, rounds: int) -> Chain:
        inner, outer = cut(ranks[0])
        tensor = outer.reshape(*outer.shape[:2], *turned.shape[2:]).swapaxes(1, 2)
        steps = pointwise(kernel, inner.transpose(0, 2, 1)), kernel.step(tensor)
        return Chain(steps, lambda: (inner @ outer).reshape(turned.shape).swapaxes(1, 2))

    return Decomposition((spectrum(energies),), build, left_out(energies))


# ---- spatial: down the columns, then along the rows ------------------------------------------


def spatial_parts(kernel: Kernel, ranks: Ranks) -> tuple[Part, ...]:
    height, width = kernel.taps
    down = kernel.groups * ranks[0] * kernel.inputs * height
    along = kernel.groups * ranks[0] * kernel.outputs * width
    return Part(down, (True, False)), Part(along, (True, True))


def spatial(kernel: Kernel, sample: Sample | None) -> Decomposition:
    """Convolve with columns, then with rows (Jaderberg et al. 2014, scheme 2)."""
    groups, outputs, inputs, height, width = kernel.shape
    matrix = kernel.tensor.transpose(0, 1, 4, 2, 3).reshape(groups, outputs * width, -1)
    moment = None if sample is None else sample.moment((0, 1), (inputs, height, width))

    def moments(turned: Doubles) -> Doubles:
        weighted = turned if moment is None else turned @ moment
        return np.asarray(weighted @ turned.transpose(0, 2, 1))

    energies, basis = _leading_rows(matrix, moments)
    cut = _Cut(matrix, basis)

    def build(ranks: Ranks, rounds: int) -> Chain:
        rows, columns = cut(ranks[0])
        down = columns.reshape(-1, inputs, height, 1)
        along = rows.reshape(groups, outputs, width, -1).transpose(0, 1, 3, 2)
        return Chain(
            (
                along_axes(kernel, down, (0,)),
                along_axes(kernel, along.reshape(groups * outputs, -1, 1, width), (1,)),
            ),
            lambda: (
                (rows @ columns)
                .reshape(groups, outputs, width, inputs, height)
                .transpose(0, 1, 3, 4, 2)
            ),
        )

    lost = left_out(energies) if sample is None else None  # else its metric is but close
    return Decomposition((spectrum(energies),), build, lost)
