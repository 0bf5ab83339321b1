"""Choose which channels of a family stay, given a score for each and the fraction that goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from graphopt.coupling.families import Family

__all__ = ["aligned", "balanced", "best", "select"]


def select(
    family: Family, scores: npt.NDArray[np.floating], ratio: float, *, align: int = 1
) -> npt.NDArray[np.int64]:
    """The channels with the highest scores, a fraction `ratio` of them less, at least one.

    With `align` the number that stays is rounded up to a multiple of it.
    """
    return best(family, scores, aligned(family, round(family.size * (1 - ratio)), align))


def aligned(family: Family, wanted: int, align: int) -> int:
    """A width from one channel to all, rounded up to a multiple of `align` where that is less.

    A small family's is a multiple of a half of it, or of a half of that, as in `balanced`.
    """
    step = _step(family, align)
    return min(family.size, -(-max(1, wanted) // step) * step)


def balanced(families: Sequence[Family], ratio: float, align: int) -> dict[str, int]:
    """Widths that are multiples of `align`, up or down so that in sum the fraction `ratio` goes.

    A channel that owns several indices of every axis counts as so many. A small family is cut to
    multiples of a half of `align`, or a half of that, as long as that is 4 or more.
    """
    widths, owed = {}, 0.0
    for family in families:
        wanted = family.size * (1 - ratio)
        step = _step(family, align)
        lower = max(int(wanted // step), 1) * step
        upper = min(lower + step, family.size)
        nearest = lower if wanted + owed - lower < upper - wanted - owed else upper
        widths[family.name] = nearest if step > 1 else min(max(1, round(wanted)), family.size)
        owed += wanted - widths[family.name]
    return widths


_FEWEST = 4
"""Steps below this gain nothing."""


def _step(family: Family, align: int) -> int:
    owned = min((len(member.places) // family.size for member in family.members), default=1)
    step = align // math.gcd(align, max(owned, 1))
    while step > 1 and 2 * step > family.size:
        step = step // 2 if step % 2 == 0 and step >= 2 * _FEWEST else 1
    return step


def best(family: Family, scores: npt.NDArray[np.floating], wanted: int) -> npt.NDArray[np.int64]:
    """So many channels, those with the highest scores, in their order.

    Groups that must keep equally many do, at the nearest number to the one asked for.
    """
    order = np.argsort(-scores, kind="stable")
    if not family.even:
        return np.sort(order[:wanted])
    return _evenly(family, order, wanted)


def _evenly(family: Family, order: npt.NDArray[np.int64], wanted: int) -> npt.NDArray[np.int64]:
    """Keep so many of each kind of channel that every row of every group keeps equally many.

    Channels are of one kind if they have equally many places in every row. How many of each kind
    stay is a small integer program: as near to their share as the rows allow.
    """
    stacked = np.concatenate(family.even)
    kinds, kind = np.unique(stacked, axis=1, return_inverse=True)
    kind = kind.reshape(-1)
    sizes = np.bincount(kind)
    share = sizes * wanted / family.size
    equal = [
        np.concatenate([kinds[row] - kinds[start], np.zeros(len(sizes))])
        for start, stop in _spans(family)
        for row in range(start + 1, stop)
    ]
    firsts = [np.concatenate([kinds[start], np.zeros(len(sizes))]) for start, _ in _spans(family)]
    identity = np.eye(len(sizes))
    result = milp(
        np.concatenate([np.zeros(len(sizes)), np.ones(len(sizes))]),
        integrality=np.concatenate([np.ones(len(sizes)), np.zeros(len(sizes))]),
        bounds=Bounds(
            np.zeros(2 * len(sizes)), np.concatenate([sizes, np.full(len(sizes), np.inf)])
        ),
        constraints=[
            LinearConstraint(np.array(equal), 0, 0),
            LinearConstraint(np.array(firsts), 1, np.inf),
            LinearConstraint(np.hstack([identity, -identity]), -np.inf, share),
            LinearConstraint(np.hstack([identity, identity]), share, np.inf),
        ],
        options={"time_limit": 10.0},
    )
    if result.x is None:
        return np.arange(family.size)
    counts = np.round(result.x[: len(sizes)]).astype(np.int64)
    chosen = [order[kind[order] == number][:count] for number, count in enumerate(counts)]
    return np.sort(np.concatenate(chosen))


def _spans(family: Family) -> list[tuple[int, int]]:
    """Where each group's rows are in all of them stacked."""
    ends = np.cumsum([len(counts) for counts in family.even]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))
