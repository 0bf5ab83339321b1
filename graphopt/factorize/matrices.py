"""Kernels as matrices: truncated singular value decompositions of two unfoldings.

Kernels are (group, out, in, taps...); groups are factorized alike, each for itself.
"""

from __future__ import annotations

import math

from graphopt.factorize.kernels import Chain, Kernel, Part
from graphopt.factorize.pieces import (
    Decomposition,
    Ranks,
    along_axes,
    bare,
    leading,
    pointwise,
    spectrum,
)
from graphopt.factorize.sampling import Sample

__all__ = ["channel", "channel_parts", "projected", "spatial", "spatial_parts", "summed"]


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
    shape = (kernel.inputs, *kernel.taps)
    moment = None if sample is None else sample.moment(tuple(range(len(shape))), shape)
    weighted = matrix if moment is None else matrix @ moment
    energies, basis = leading(weighted @ matrix.transpose(0, 2, 1))

    def build(ranks: Ranks, rounds: int) -> Chain:
        outer = basis[:, :, : ranks[0]]
        inner = (outer.transpose(0, 2, 1) @ matrix).reshape(len(outer), -1, *shape)
        made = (outer @ inner.reshape(*inner.shape[:2], -1)).reshape(kernel.tensor.shape)
        return Chain((bare(kernel, inner), pointwise(kernel, outer)), made)

    return Decomposition((spectrum(energies),), build)


def _transposed_channel(kernel: Kernel) -> Decomposition:
    turned = kernel.tensor.swapaxes(1, 2)
    matrix = turned.reshape(kernel.groups, kernel.inputs, -1)
    energies, basis = leading(matrix @ matrix.transpose(0, 2, 1))

    def build(ranks: Ranks, rounds: int) -> Chain:
        inner = basis[:, :, : ranks[0]].transpose(0, 2, 1)
        outer = inner @ matrix
        made = (inner.transpose(0, 2, 1) @ outer).reshape(turned.shape).swapaxes(1, 2)
        tensor = outer.reshape(len(outer), -1, *turned.shape[2:]).swapaxes(1, 2)
        return Chain((pointwise(kernel, inner), kernel.step(tensor)), made)

    return Decomposition((spectrum(energies),), build)


# ---- spatial: down the columns, then along the rows ------------------------------------------


def spatial_parts(kernel: Kernel, ranks: Ranks) -> tuple[Part, ...]:
    height, width = kernel.taps
    down = kernel.groups * ranks[0] * kernel.inputs * height
    along = kernel.groups * ranks[0] * kernel.outputs * width
    return Part(down, (True, False)), Part(along, (True, True))


def spatial(kernel: Kernel, sample: Sample | None) -> Decomposition:
    """Convolve with columns, then with rows (Jaderberg et al. 2014, scheme 2)."""
    groups, outputs, inputs, height, width = kernel.tensor.shape
    matrix = kernel.tensor.transpose(0, 2, 3, 1, 4).reshape(groups, inputs * height, -1)
    moment = None if sample is None else sample.moment((0, 1), (inputs, height, width))
    weighted = matrix if moment is None else moment @ matrix
    energies, basis = leading(matrix.transpose(0, 2, 1) @ weighted)

    def build(ranks: Ranks, rounds: int) -> Chain:
        rows = basis[:, :, : ranks[0]].transpose(0, 2, 1)
        columns = matrix @ rows.transpose(0, 2, 1)
        made = (columns @ rows).reshape(groups, inputs, height, outputs, width)
        down = columns.transpose(0, 2, 1).reshape(-1, inputs, height, 1)
        along = rows.reshape(groups, -1, outputs, width).swapaxes(1, 2)
        return Chain(
            (
                along_axes(kernel, down, (0,)),
                along_axes(kernel, along.reshape(groups * outputs, -1, 1, width), (1,)),
            ),
            made.transpose(0, 3, 1, 2, 4),
        )

    return Decomposition((spectrum(energies),), build)
