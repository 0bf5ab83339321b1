"""The table of ways to factorize a kernel: what each fits, its ranks, its layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from graphopt.factorize.kernels import Kernel, Part
from graphopt.factorize.matrices import (
    channel,
    channel_parts,
    projected,
    spatial,
    spatial_parts,
    summed,
)
from graphopt.factorize.pieces import Decomposition, Ranks
from graphopt.factorize.sampling import Sample
from graphopt.factorize.tensors import cp, cp_parts, tucker, tucker_parts

__all__ = ["METHODS", "Method"]


def _any(kernel: Kernel, ranks: Ranks) -> Ranks:
    """Ranks of a single matrix, or of products of vectors, have nothing beside them."""
    return ranks


@dataclass(frozen=True)
class Method:
    """One way to factorize; ranks count components per group.

    fits       whether a kernel is of the right kind
    full       the ranks at which nothing is lost
    parts      the layers of the chain
    unfoldings the shapes of the matrices whose ranks they are, () where they are none
    bound      the ranks, without what carries nothing beside the other ranks
    """

    fits: Callable[[Kernel], bool]
    full: Callable[[Kernel], Ranks]
    parts: Callable[[Kernel, Ranks], tuple[Part, ...]]
    unfoldings: Callable[[Kernel], tuple[tuple[int, int], ...]]
    decompose: Callable[[Kernel, Sample | None], Decomposition]
    bound: Callable[[Kernel, Ranks], Ranks] = _any


def _smaller(rows: int, columns: int) -> Ranks:
    return (min(rows, columns),)


def _core(kernel: Kernel, ranks: Ranks) -> Ranks:
    """Neither rank is larger than that of the core's unfolding, whose other side has all taps."""
    outer, inner = ranks
    taps = math.prod(kernel.taps)
    return min(outer, inner * taps), min(inner, outer * taps)


def _is_pointwise(kernel: Kernel) -> bool:
    return math.prod(kernel.taps) == 1


def _spreads(kernel: Kernel) -> bool:
    return kernel.node.op == "Conv" and not _is_pointwise(kernel)


METHODS: Mapping[str, Method] = {
    "svd": Method(
        fits=_is_pointwise,
        full=lambda kernel: _smaller(projected(kernel), summed(kernel)),
        parts=channel_parts,
        unfoldings=lambda kernel: ((projected(kernel), summed(kernel)),),
        decompose=channel,
    ),
    "channel": Method(
        fits=lambda kernel: not _is_pointwise(kernel),
        full=lambda kernel: _smaller(projected(kernel), summed(kernel)),
        parts=channel_parts,
        unfoldings=lambda kernel: ((projected(kernel), summed(kernel)),),
        decompose=channel,
    ),
    "spatial": Method(
        fits=lambda kernel: _spreads(kernel) and len(kernel.taps) == 2 and min(kernel.taps) > 1,
        full=lambda kernel: _smaller(
            kernel.inputs * kernel.taps[0], kernel.outputs * kernel.taps[1]
        ),
        parts=spatial_parts,
        unfoldings=lambda kernel: (
            (kernel.inputs * kernel.taps[0], kernel.outputs * kernel.taps[1]),
        ),
        decompose=spatial,
    ),
    "tucker": Method(
        fits=_spreads,
        full=lambda kernel: (
            min(kernel.outputs, kernel.inputs * math.prod(kernel.taps)),
            min(kernel.inputs, kernel.outputs * math.prod(kernel.taps)),
        ),
        parts=tucker_parts,
        unfoldings=lambda kernel: (
            (kernel.outputs, kernel.inputs * math.prod(kernel.taps)),
            (kernel.inputs, kernel.outputs * math.prod(kernel.taps)),
        ),
        decompose=tucker,
        bound=_core,
    ),
    "cp": Method(
        fits=_spreads,
        full=lambda kernel: (min(kernel.outputs, kernel.inputs) * math.prod(kernel.taps),),
        parts=cp_parts,
        unfoldings=lambda kernel: (),
        decompose=cp,
    ),
}
"""Method name -> what it does."""
