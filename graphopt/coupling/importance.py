"""How much each channel of a family matters: one small function per criterion.

A criterion looks at one member, an axis of a weight, and gives a score per index; the scores of
all weights that a channel runs through are brought to a mean of 1 and averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from graphopt.coupling.families import Family
from graphopt.errors import ModelError
from graphopt.ir import Array, Graph

__all__ = ["IMPORTANCES", "Importance", "Scores", "Statistics", "sum_along"]

Scores = npt.NDArray[np.float64]
Statistics = Mapping[str, Array]
"""What calibration measured, by the name of the tensor; empty where nothing was."""

Importance = Callable[[Family, Graph, Statistics], Scores]


def _from_weights(norm: Callable[[Array, int], Scores]) -> Importance:
    """A criterion out of a norm per index of an axis of a weight."""

    def criterion(family: Family, graph: Graph, statistics: Statistics) -> Scores:
        total, count = np.zeros(family.size), 0
        for member in family.members:
            weight = graph.constant(member.tensor)
            if weight is None or weight.ndim < 2 or weight.dtype.kind not in "fiu":
                continue
            per_index = norm(weight, member.axis)
            if not np.isfinite(per_index).all():
                raise ModelError(f"importance: {member.tensor!r} holds NaN or infinite weights")
            scores = np.bincount(
                member.channels, weights=per_index[member.places], minlength=family.size
            )
            total += scores / (scores.mean() or 1.0)
            count += 1
        return total / max(count, 1)

    return criterion


def sum_along(array: Array, axis: int, subscripts: str) -> Scores:
    """Contract an array with itself or with ones over all axes but one, without a copy of it."""
    axis %= array.ndim
    outer = int(np.prod(array.shape[:axis], dtype=np.int64))
    cube: npt.NDArray[np.float32] = array.astype(np.float32, copy=False)
    cube = cube.reshape(outer, array.shape[axis], -1)
    operands = [cube] * (subscripts.count(",") + 1)
    return np.asarray(np.einsum(subscripts, *operands), dtype=np.float64)


def _l2(weight: Array, axis: int) -> Scores:
    return np.sqrt(sum_along(weight, axis, "anb,anb->n"))


def _l1(weight: Array, axis: int) -> Scores:
    return sum_along(np.abs(weight), axis, "anb->n")


IMPORTANCES: Mapping[str, Importance] = {
    "l1": _from_weights(_l1),
    "l2": _from_weights(_l2),
}
"""By the name the option `importance` has; higher scores stay."""
