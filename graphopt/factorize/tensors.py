"""Kernels as tensors: Tucker-2 and CP.

Kernels are (group, out, in, taps...); groups are factorized alike, each for itself. No product of
factors is ever larger than a kernel's column for each component.
"""

from __future__ import annotations

import math

import numpy as np

from graphopt.factorize.kernels import Chain, Doubles, Kernel, Part
from graphopt.factorize.pieces import (
    Decomposition,
    Ranks,
    along_axes,
    bare,
    leading,
    pointwise,
    spectrum,
    whitened,
)
from graphopt.factorize.sampling import Sample

__all__ = ["cp", "cp_parts", "tucker", "tucker_parts"]


# ---- tucker: fewer inputs, a small core, the outputs -----------------------------------------


def tucker_parts(kernel: Kernel, ranks: Ranks) -> tuple[Part, ...]:
    outer, inner = ranks
    before, done = (False,) * len(kernel.taps), (True,) * len(kernel.taps)
    core = kernel.groups * outer * inner * math.prod(kernel.taps)
    return (
        Part(kernel.groups * inner * kernel.inputs, before),
        Part(core, done),
        Part(kernel.groups * outer * kernel.outputs, done),
    )


def tucker(kernel: Kernel, sample: Sample | None) -> Decomposition:
    """Project inputs and outputs of a smaller convolution (Tucker-2; Kim et al. 2016).

    The bases are the leading singular vectors of the unfoldings, refined by alternating
    projections (De Lathauwer et al. 2000).
    """
    white, unwhiten = whitened(kernel, sample)
    energies, bases = zip(*(_leading_along(white, mode) for mode in (1, 2)), strict=True)

    def build(ranks: Ranks, rounds: int) -> Chain:
        outer, inner = (basis[:, :, :rank] for basis, rank in zip(bases, ranks, strict=True))
        outer, inner = _alternating(white, outer, inner, rounds)
        core = np.einsum("goi...,gor,gis->grs...", white, outer, inner, optimize=True)
        given = inner.transpose(0, 2, 1) @ unwhiten
        steps = pointwise(kernel, given), bare(kernel, core), pointwise(kernel, outer)
        return Chain(
            steps,
            lambda: np.asarray(
                np.einsum("grs...,gor,gsi->goi...", core, outer, given, optimize=True)
            ),
        )

    return Decomposition(tuple(spectrum(energy) for energy in energies), build)


_LEAST_GAIN = 1e-4
"""Of the root of the part of the energy that is lost: a round that gains less is the last."""


def _alternating(
    white: Doubles, outer: Doubles, inner: Doubles, rounds: int
) -> tuple[Doubles, Doubles]:
    """Each basis (group, size, component) in turn the best one beside the other."""
    whole, last = max(float(np.sum(white**2)), 1e-30), 1.0
    for _ in range(rounds):
        rest = np.einsum("goi...,gis->gos...", white, inner, optimize=True)
        outer = _leading_along(rest, 1)[1][:, :, : outer.shape[2]]
        rest = np.einsum("goi...,gor->gri...", white, outer, optimize=True)
        energies, basis = _leading_along(rest, 2)
        inner = basis[:, :, : inner.shape[2]]
        kept = float(np.sum(energies[:, : inner.shape[2]]))
        lost = math.sqrt(max(1 - kept / whole, 0.0))
        if last - lost < _LEAST_GAIN:
            break
        last = lost
    return outer, inner


def _leading_along(tensor: Doubles, axis: int) -> tuple[Doubles, Doubles]:
    """Energies and directions of a tensor's unfolding along an axis."""
    flat = np.moveaxis(tensor, axis, 1).reshape(len(tensor), tensor.shape[axis], -1)
    return leading(flat @ flat.transpose(0, 2, 1))


# ---- cp: fewer inputs, each axis for itself, the outputs -------------------------------------


def cp_parts(kernel: Kernel, ranks: Ranks) -> tuple[Part, ...]:
    (rank,), count = ranks, len(kernel.taps)
    total = kernel.groups * rank
    axes = [
        Part(total * taps, tuple(other <= axis for other in range(count)))
        for axis, taps in enumerate(kernel.taps)
    ]
    return (
        Part(total * kernel.inputs, (False,) * count),
        *axes,
        Part(total * kernel.outputs, (True,) * count),
    )


def cp(kernel: Kernel, sample: Sample | None) -> Decomposition:
    """Write the kernel as a sum of products of vectors (CP; Lebedev et al. 2015).

    Alternating least squares start from the singular vectors of each tap's matrix, whose leading
    ones alone are such a sum; it is never left for a worse one.
    """
    white, unwhiten = whitened(kernel, sample)
    weights, factors = _slices(white)

    def build(ranks: Ranks, rounds: int) -> Chain:
        start = [factor[:, :, : ranks[0]] for factor in factors]
        outer, inner, *axes = _even(_solved(white, weights[:, : ranks[0]], start, rounds))
        given = inner.transpose(0, 2, 1) @ unwhiten
        middle = [
            along_axes(kernel, _depthwise(factor, axis, len(axes)), (axis,), each=True)
            for axis, factor in enumerate(axes)
        ]
        steps = (pointwise(kernel, given), *middle, pointwise(kernel, outer))
        return Chain(steps, lambda: _product([outer, given.transpose(0, 2, 1), *axes]))

    return Decomposition((spectrum(weights**2),), build)


_RIDGE = 1e-7
"""Keeps factors from growing against each other without bound, components being of norm 1."""

_Factors = list[Doubles]
"""A factor (group, size, component) for each axis: outputs, inputs, taps."""


def _slices(white: Doubles) -> tuple[Doubles, _Factors]:
    """The components of a kernel tap by tap, largest first: sums of them are nested.

    Their weights (group, component), and factors whose columns have norm 1.
    """
    groups, outputs, inputs, *taps = white.shape
    flat = np.moveaxis(white.reshape(groups, outputs, inputs, -1), -1, 1)
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    count = values.shape[2]
    order = np.argsort(-values.reshape(groups, -1), axis=1, kind="stable")
    outer = np.moveaxis(left, 1, 2).reshape(groups, outputs, -1)
    inner = np.moveaxis(right, 3, 1).reshape(groups, inputs, -1)
    places = np.unravel_index(order // count, taps)
    axes = [
        np.eye(size)[place].transpose(0, 2, 1) for size, place in zip(taps, places, strict=True)
    ]
    sides = [np.take_along_axis(side, order[:, np.newaxis], axis=2) for side in (outer, inner)]
    return np.take_along_axis(values.reshape(groups, -1), order, axis=1), [*sides, *axes]


def _solved(white: Doubles, weights: Doubles, start: _Factors, rounds: int) -> _Factors:
    """Factors by alternating least squares, the first of them with the weights.

    Of each group, what it starts from where that is better.
    """
    first = [start[0] * weights[:, np.newaxis], *start[1:]]
    if not rounds:
        return first
    factors, flat = first, white.reshape(*white.shape[:2], -1)
    try:
        for _ in range(rounds):
            factors = _next_round(white, flat, factors)
    except np.linalg.LinAlgError:
        return first
    errors = [
        np.sum((white - _product(f)).reshape(len(white), -1) ** 2, 1) for f in (factors, first)
    ]
    better = (errors[0] < errors[1])[:, np.newaxis, np.newaxis]
    return [np.where(better, new, old) for new, old in zip(factors, first, strict=True)]


def _next_round(white: Doubles, flat: Doubles, factors: _Factors) -> _Factors:
    """Solve for inputs and taps beside the outputs, then for the outputs beside those."""
    outer, *others = factors
    outer = _unit(outer)
    cube = (flat.transpose(0, 2, 1) @ outer).reshape(len(white), *white.shape[2:], -1)
    for place in range(len(others)):
        beside = [outer, *(f for other, f in enumerate(others) if other != place)]
        others[place] = _unit(_least_squares(_contracted(cube, others, place), beside))
    return [_least_squares(flat @ _spread(others), others), *others]


def _unit(factor: Doubles) -> Doubles:
    norms = np.linalg.norm(factor, axis=1, keepdims=True)
    return np.asarray(factor / np.maximum(norms, 1e-30))


def _least_squares(sums: Doubles, beside: _Factors) -> Doubles:
    """A factor from the tensor's products (group, size, component) with the others."""
    gram = math.prod((f.transpose(0, 2, 1) @ f for f in beside), start=np.float64(1.0))
    solved = np.linalg.solve(gram + _RIDGE * np.eye(gram.shape[-1]), sums.transpose(0, 2, 1))
    return np.asarray(solved.transpose(0, 2, 1))


def _contracted(cube: Doubles, factors: _Factors, kept: int) -> Doubles:
    """A tensor (group, axes..., component) summed over all axes but one, each with its factor."""
    for axis in reversed(range(len(factors))):
        if axis != kept:
            factor = factors[axis]
            shape = [1] * cube.ndim
            shape[0], shape[axis + 1], shape[-1] = factor.shape
            cube = np.sum(cube * factor.reshape(shape), axis=axis + 1)
    return cube


def _spread(factors: _Factors) -> Doubles:
    """Products of the factors' columns: (group, all places, component)."""
    made, *others = factors
    for factor in others:
        wide = made[:, :, np.newaxis] * factor[:, np.newaxis]
        made = wide.reshape(len(made), -1, made.shape[2])
    return made


def _product(factors: _Factors) -> Doubles:
    """The tensor that factors amount to."""
    outer, *others = factors
    sizes = [factor.shape[1] for factor in factors]
    return np.asarray(outer @ _spread(others).transpose(0, 2, 1)).reshape(len(outer), *sizes)


def _even(factors: _Factors) -> _Factors:
    """The same components, their norms spread evenly over the factors."""
    norms = [np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-30) for f in factors]
    each = math.prod(norms) ** (1 / len(factors))
    return [factor / norm * each for factor, norm in zip(factors, norms, strict=True)]


def _depthwise(factor: Doubles, axis: int, count: int) -> Doubles:
    """A weight (channel, 1, taps...) from a factor (group, tap, component)."""
    flat = factor.transpose(0, 2, 1).reshape(-1, factor.shape[1])
    return flat.reshape(len(flat), 1, *(-1 if other == axis else 1 for other in range(count)))
