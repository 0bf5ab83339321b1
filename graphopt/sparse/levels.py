"""Which weights stay when an exact number of them must go, by magnitude."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["ALLOCATIONS", "Allocation", "in_groups", "kept_at"]

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Allocation = Literal["uniform", "global", "deviation", "lamp"]


def _magnitudes(weight: Array) -> Floats:
    return np.abs(weight.astype(np.float64)).reshape(-1)


def _by_deviation(weight: Array) -> Floats:
    """Magnitudes over the layer's standard deviation (Han et al. 2015)."""
    return _magnitudes(weight) / (float(np.std(weight.astype(np.float64))) or 1.0)


def _lamp(weight: Array) -> Floats:
    """Squares over the sum of all squares that are no smaller (Lee et al. 2021).

    So the last weight of every layer has the score 1, and no layer is emptied before the others.
    """
    squares = _magnitudes(weight) ** 2
    order = np.argsort(squares, kind="stable")
    rest = np.cumsum(squares[order][::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = squares[order] / np.maximum(rest, np.finfo(np.float64).tiny)
    return scores


ALLOCATIONS: Mapping[Allocation, Callable[[Array], Floats] | None] = {
    "uniform": None,
    "global": _magnitudes,
    "deviation": _by_deviation,
    "lamp": _lamp,
}
"""What weights of different layers are compared by; uniform: every layer loses the same part."""


def kept_at(weights: Mapping[str, Array], sparsity: float, how: Allocation) -> dict[str, Mask]:
    """For each weight which elements stay, so that exactly the part `sparsity` of all does not.

    The numbers are rounded to whole elements; of equal scores those that come first go. Every
    layer keeps one element at least.
    """
    score = ALLOCATIONS[how]
    if score is None:
        return {n: _best(_magnitudes(w), sparsity).reshape(w.shape) for n, w in weights.items()}
    scores = {name: score(weight) for name, weight in weights.items()}
    for values in scores.values():
        values[np.argmax(values)] = np.inf
    kept = _best(np.concatenate(list(scores.values())), sparsity, least=len(scores))
    ends = np.cumsum([len(values) for values in scores.values()])
    parts = np.split(kept, ends[:-1])
    return {n: part.reshape(w.shape) for (n, w), part in zip(weights.items(), parts, strict=True)}


def _best(scores: Floats, sparsity: float, least: int = 1) -> Mask:
    """All but exactly round(sparsity * n) scores, the smallest; so many at least stay."""
    kept = np.ones(len(scores), np.bool_)
    gone = min(round(sparsity * len(scores)), len(scores) - least)
    if gone <= 0:
        return kept
    threshold = np.partition(scores, gone - 1)[gone - 1]
    kept[scores < threshold] = False
    ties = np.flatnonzero(scores == threshold)
    kept[ties[: gone - int(np.count_nonzero(~kept))]] = False
    return kept


def in_groups(weight: Array, axis: int, keep: int, size: int) -> Mask:
    """In every `size` elements in a row along an axis, the `keep` largest; the first of equals."""
    rows = np.moveaxis(np.abs(weight.astype(np.float64)), axis, -1)
    groups = rows.reshape(*rows.shape[:-1], -1, size)
    order = np.argsort(-groups, axis=-1, kind="stable")
    kept = np.zeros(groups.shape, np.bool_)
    np.put_along_axis(kept, order[..., :keep], True, axis=-1)
    return np.ascontiguousarray(np.moveaxis(kept.reshape(rows.shape), -1, axis))
