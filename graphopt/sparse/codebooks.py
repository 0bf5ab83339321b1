"""Few values for all weights of a layer: k-means in one dimension, with zero as a value apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Codebook", "fit_codebook"]

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

_MOST_ROUNDS = 300


@dataclass(frozen=True, eq=False)
class Codebook:
    """Values in order; where the weight had zeros, one of them is zero.

    `error` is the part of the weight's squares that sharing takes away.
    """

    values: Array
    codes: npt.NDArray[np.uint16]
    error: float

    def weight(self) -> Array:
        return self.values[self.codes]


def fit_codebook(weight: Array, bits: int) -> Codebook:
    """At most 2^bits values, zero among them if there are zeros: they stay zero, and only they do.

    Lloyd's iterations from values evenly spread from the least to the largest, which keeps the
    few large weights (Han et al. 2016). A cluster that nothing falls into is dropped.
    """
    flat = weight.reshape(-1)
    zero = flat == 0
    others = np.sort(flat[~zero].astype(np.float64))
    room = 2**bits - bool(zero.any())
    centres = _lloyd(others, room) if len(others) else np.zeros(0)
    narrow = centres.astype(weight.dtype)
    if len(others):  # a mean of both signs must not become the zero that means pruned
        narrow[narrow == 0] = others[np.argmin(np.abs(others))]
    values = np.unique(narrow)
    codes = _nearest(flat.astype(np.float64), values.astype(np.float64))
    if zero.any():
        place = int(np.searchsorted(values, 0))
        codes = codes + (codes >= place)
        codes[zero] = place
        values = np.insert(values, place, 0)
    shared = values[codes]
    energy = float(np.sum(others**2)) or 1.0
    error = float(np.sum((flat.astype(np.float64) - shared.astype(np.float64)) ** 2)) / energy
    return Codebook(values, codes.astype(np.uint16).reshape(weight.shape), error)


def _lloyd(ordered: Floats, count: int) -> Floats:
    """Means of clusters; all values themselves if there are no more than that."""
    distinct = np.unique(ordered)
    if len(distinct) <= count:
        return distinct
    centres = np.linspace(ordered[0], ordered[-1], count)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(_MOST_ROUNDS):
        edges = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(ordered)]])
        sizes = np.diff(edges)
        moved = np.where(sizes, np.diff(sums[edges]) / np.maximum(sizes, 1), centres)
        moved = np.maximum.accumulate(moved)  # rounding in the sums must not swap neighbours
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres[sizes > 0]


def _nearest(values: Floats, centres: Floats) -> npt.NDArray[np.int64]:
    """The place of the nearest centre; of two as near, the lower."""
    if not len(centres):
        return np.zeros(len(values), np.int64)
    return np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
