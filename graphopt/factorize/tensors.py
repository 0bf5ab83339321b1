"""Kernels as tensors: Tucker-2 and CP, by TensorLy.

Kernels are (group, out, in, taps...); groups are factorized alike, each for itself.
"""

from __future__ import annotations

import math

import numpy as np
import tensorly.decomposition
from tensorly.cp_tensor import CPTensor

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

    The bases are the leading singular vectors of the unfoldings, refined by TensorLy's alternating
    projections.
    """
    white, unwhiten = whitened(kernel, sample)
    bases, energies = [], []
    for mode in (1, 2):
        flat = np.moveaxis(white, mode, 1).reshape(kernel.groups, white.shape[mode], -1)
        energy, basis = leading(flat @ flat.transpose(0, 2, 1))
        bases.append(basis)
        energies.append(energy)

    def build(ranks: Ranks, rounds: int) -> Chain:
        outer, inner = (basis[:, :, :rank] for basis, rank in zip(bases, ranks, strict=True))
        if rounds:
            pairs = [
                _refined(white[group], outer[group], inner[group], rounds)
                for group in range(kernel.groups)
            ]
            outer, inner = (np.stack(entries) for entries in zip(*pairs, strict=True))
        core = np.einsum("goi...,gor,gis->grs...", white, outer, inner, optimize=True)
        given = inner.transpose(0, 2, 1) @ unwhiten
        made = np.einsum("grs...,gor,gsi->goi...", core, outer, given, optimize=True)
        steps = pointwise(kernel, given), bare(kernel, core), pointwise(kernel, outer)
        return Chain(steps, made)

    return Decomposition(tuple(spectrum(energy) for energy in energies), build)


def _refined(
    tensor: Doubles, outer: Doubles, inner: Doubles, rounds: int
) -> tuple[Doubles, Doubles]:
    core = np.einsum("oi...,or,is->rs...", tensor, outer, inner, optimize=True)
    (_, factors), _ = tensorly.decomposition.partial_tucker(
        tensor,
        rank=[outer.shape[1], inner.shape[1]],
        modes=[0, 1],
        n_iter_max=rounds,
        init=(core, [outer, inner]),
    )
    return np.asarray(factors[0]), np.asarray(factors[1])


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

    TensorLy's alternating least squares start from the singular vectors of each tap's matrix,
    whose leading ones alone are such a sum; it is never left for a worse one.
    """
    white, unwhiten = whitened(kernel, sample)
    slices = [_slices(tensor) for tensor in white]

    def build(ranks: Ranks, rounds: int) -> Chain:
        found = [
            _alternated(tensor, _largest(part, ranks[0]), rounds)
            for tensor, part in zip(white, slices, strict=True)
        ]
        outer, inner, *axes = (np.stack(entries) for entries in zip(*found, strict=True))
        given = inner.transpose(0, 2, 1) @ unwhiten
        turned = given.transpose(0, 2, 1)
        made = np.stack([_product(group) for group in zip(outer, turned, *axes, strict=True)])
        middle = [
            along_axes(kernel, _depthwise(factor, axis, len(axes)), (axis,), each=True)
            for axis, factor in enumerate(axes)
        ]
        steps = (pointwise(kernel, given), *middle, pointwise(kernel, outer))
        return Chain(steps, made)

    energies = np.stack([part[0] for part in slices]) ** 2
    return Decomposition((spectrum(energies),), build)


_RIDGE = 1e-7
"""Keeps factors from growing against each other without bound, components being of norm 1."""

_Slices = tuple[Doubles, tuple[Doubles, ...]]
"""Weights of components, largest first, and a factor (size, component) for each axis."""


def _slices(tensor: Doubles) -> _Slices:
    """The components of a kernel (out, in, taps...) tap by tap: sums of them are nested."""
    taps = tensor.shape[2:]
    flat = tensor.reshape(*tensor.shape[:2], -1).transpose(2, 0, 1)
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    order = np.argsort(values.reshape(-1))[::-1]
    places = np.unravel_index(order // values.shape[1], taps) if taps else ()
    outer = left.transpose(1, 0, 2).reshape(len(tensor), -1)[:, order]
    inner = right.reshape(-1, tensor.shape[1])[order].T
    axes = [np.eye(size)[:, place] for size, place in zip(taps, places, strict=True)]
    return values.reshape(-1)[order], (outer, inner, *axes)


def _largest(slices: _Slices, rank: int) -> _Slices:
    weights, factors = slices
    return weights[:rank], tuple(factor[:, :rank] for factor in factors)


def _alternated(tensor: Doubles, start: _Slices, rounds: int) -> tuple[Doubles, ...]:
    """Factors whose product is near a tensor, their norms spread evenly."""
    weights, factors = start
    best = _even(weights, factors)
    if not rounds:
        return best
    scale = float(np.sqrt(np.mean(weights**2))) or 1.0
    try:
        values, made = tensorly.decomposition.parafac(
            tensor / scale,
            rank=len(weights),
            n_iter_max=rounds,
            init=CPTensor((weights / scale, list(factors))),
            tol=1e-7,
            l2_reg=_RIDGE,
        )
    except np.linalg.LinAlgError:
        return best
    tried = _even(np.asarray(values) * scale, [np.asarray(factor) for factor in made])
    errors = [float(np.sum((tensor - _product(entry)) ** 2)) for entry in (best, tried)]
    return tried if errors[1] < errors[0] else best


def _even(weights: Doubles, factors: tuple[Doubles, ...] | list[Doubles]) -> tuple[Doubles, ...]:
    norms = [np.maximum(np.linalg.norm(factor, axis=0), 1e-30) for factor in factors]
    whole = weights * np.prod(norms, axis=0)
    each = np.abs(whole) ** (1 / len(factors))
    scaled = [factor / norm * each for factor, norm in zip(factors, norms, strict=True)]
    return scaled[0] * np.sign(whole), *scaled[1:]


def _product(factors: tuple[Doubles, ...]) -> Doubles:
    letters = "abcdefgh"[: len(factors)]
    return np.asarray(
        np.einsum(",".join(f"{letter}r" for letter in letters) + "->" + letters, *factors,
                  optimize=True)
    )  # fmt: skip


def _depthwise(factor: Doubles, axis: int, count: int) -> Doubles:
    """A weight (channel, 1, taps...) from a factor (group, tap, component)."""
    flat = factor.transpose(0, 2, 1).reshape(-1, factor.shape[1])
    return flat.reshape(len(flat), 1, *(-1 if other == axis else 1 for other in range(count)))
