"""What the ways to factorize a kernel have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graphopt.factorize.kernels import Chain, Doubles, Kernel, Step, axis_attributes
from graphopt.factorize.sampling import Sample

__all__ = [
    "Decomposition",
    "Ranks",
    "along_axes",
    "bare",
    "leading",
    "left_out",
    "pointwise",
    "spectrum",
    "whitened",
]

Ranks = tuple[int, ...]

Build = Callable[[Ranks, int], Chain]
"""From ranks, and how many rounds of refinement there may be, to layers."""


@dataclass(frozen=True, eq=False)
class Decomposition:
    """A kernel taken apart: cut at any rank it is a chain.

    A spectrum, for each rank, holds the roots of the energies that the components carry. `lost`
    is the error at ranks where that is known without building anything, refined or not.
    """

    spectra: tuple[Doubles, ...]
    build: Build
    lost: Callable[[Ranks], float] | None = None


def leading(grams: Doubles) -> tuple[Doubles, Doubles]:
    """Eigenvalues (group, component), largest first, and the vectors (group, place, component)."""
    values, vectors = np.linalg.eigh((grams + grams.transpose(0, 2, 1)) / 2)
    return np.maximum(values[:, ::-1], 0.0), np.ascontiguousarray(vectors[:, :, ::-1])


def spectrum(energies: Doubles) -> Doubles:
    """The roots of energies (group, component), of all groups together."""
    return np.asarray(np.sqrt(np.maximum(energies.sum(axis=0), 0.0)))


def left_out(energies: Doubles) -> Callable[[Ranks], float]:
    """From ranks to the part of the energies (group, component) that no component carries."""
    tails = np.append(np.cumsum(energies.sum(axis=0)[::-1])[::-1], 0.0)
    return lambda ranks: float(tails[ranks[0]] / max(tails[0], 1e-30))


def whitened(kernel: Kernel, sample: Sample | None) -> tuple[Doubles, Doubles]:
    """The kernel as it acts on uncorrelated channels, and what makes them so: (group, in, in)."""
    if sample is None:
        return kernel.tensor, np.stack([np.eye(kernel.inputs)] * kernel.groups)
    moment = sample.moment((0,), (kernel.inputs, *kernel.taps))
    values, vectors = np.linalg.eigh(moment)
    root = np.sqrt(values)[:, np.newaxis]
    back = vectors.transpose(0, 2, 1)
    colour, whiten = (vectors * root) @ back, (vectors / root) @ back
    return np.asarray(np.einsum("goi...,gij->goj...", kernel.tensor, colour)), whiten


def bare(kernel: Kernel, tensor: Doubles) -> Step:
    """The layer itself, without bias and with another kernel."""
    return pointwise(kernel, tensor) if kernel.is_dense else kernel.step(tensor)


def pointwise(kernel: Kernel, matrices: Doubles) -> Step:
    """A product (group, out, in) at every place."""
    if kernel.is_dense:
        return Step("MatMul", matrices[0].T, {})
    taps = (1,) * len(kernel.taps)
    weight = matrices.reshape(-1, matrices.shape[2], *taps)
    return Step("Conv", weight, {"kernel_shape": list(taps), "group": kernel.groups})


def along_axes(
    kernel: Kernel, weight: Doubles, axes: tuple[int, ...], *, each: bool = False
) -> Step:
    """A convolution along some axes; of `each` channel by itself, or of a group's."""
    group = len(weight) if each else kernel.groups
    return Step("Conv", weight, axis_attributes(kernel.node, kernel.taps, axes, group))
