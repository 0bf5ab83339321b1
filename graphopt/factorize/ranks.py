"""Ranks for one layer: by its share of the work, by energy, by EVBMF, or a grid to choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from graphopt.factorize.evbmf import evbmf_rank
from graphopt.factorize.kernels import Doubles, Kernel
from graphopt.factorize.methods import Method
from graphopt.factorize.pieces import Decomposition, Ranks

__all__ = ["by_energy", "by_evbmf", "by_part", "fixed", "grid", "within"]

_STEPS = 30
"""Bisections: enough to tell single ranks apart."""

_GRID = 16
"""Parts of the most that a layer may cost for which ranks are offered to an overall budget."""


def fixed(full: Ranks, rank: int) -> Ranks | None:
    """The same rank everywhere; None where a matrix has no such rank."""
    return None if rank > min(full) else (rank,) * len(full)


def by_energy(decomposition: Decomposition, full: Ranks, share: float, align: int) -> Ranks:
    """The least ranks whose components carry this share of the energy, rounded up to `align`."""
    found = []
    for spectrum, most in zip(decomposition.spectra, full, strict=True):
        carried = np.cumsum(spectrum[:most] ** 2)
        wanted = share * carried[-1]
        found.append(_upwards(int(np.searchsorted(carried, wanted * (1 - 1e-12))) + 1, most, align))
    return tuple(found)


def by_evbmf(
    method: Method, kernel: Kernel, spectra: Sequence[Doubles], factor: float, align: int
) -> Ranks | None:
    """What stands out of noise in the weights alone, times a factor; None without matrices.

    The spectra are those of the weights alone.
    """
    shapes = method.unfoldings(kernel)
    if not shapes:
        return None
    found = []
    for spectrum, (rows, columns), most in zip(spectra, shapes, method.full(kernel), strict=True):
        # Groups are factorized alike: their mean spectrum decides.
        rank = evbmf_rank(spectrum / np.sqrt(kernel.groups), rows, columns)
        found.append(_upwards(max(round(rank * factor), 1), most, align))
    return tuple(found)


def by_part(full: Ranks, cost: Callable[[Ranks], float], most: float, align: int) -> Ranks | None:
    """The largest ranks, in proportion to the full ones, that cost at most so much."""
    low, high = 0.0, 1.0
    if cost(_downwards(full, high, align)) <= most:
        return _downwards(full, high, align)
    if cost(_downwards(full, low, align)) > most:
        return None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if cost(_downwards(full, middle, align)) <= most:
            low = middle
        else:
            high = middle
    return _downwards(full, low, align)


def grid(full: Ranks, cost: Callable[[Ranks], float], most: float, align: int) -> Iterator[Ranks]:
    """Ranks that cost up to `most`, the cheapest first, none twice."""
    seen: Ranks | None = None
    for number in range(1, _GRID):
        found = by_part(full, cost, most * number / _GRID, align)
        if found is not None and found != seen:
            seen = found
            yield found


def within(method: Method, kernel: Kernel, ranks: Ranks, align: int) -> Ranks:
    """The ranks without what carries nothing beside the others, multiples of `align` if above it.

    Matrices with empty columns would be filled up with random ones.
    """
    return tuple(
        rank if rank <= most else most if most <= align else most // align * align
        for rank, most in zip(ranks, method.bound(kernel, ranks), strict=True)
    )


def _downwards(full: Ranks, part: float, align: int) -> Ranks:
    """A part of the full ranks, at least 1, multiples of `align` if above it."""
    found = []
    for most in full:
        rank = max(int(part * most + 1e-9), 1)
        found.append(rank if rank <= align or rank == most else rank // align * align)
    return tuple(found)


def _upwards(rank: int, most: int, align: int) -> int:
    return min(-(-rank // align) * align, most)
