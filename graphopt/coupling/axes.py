"""Axes as arrays of atoms: one integer for every index that could be removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Atoms", "Axes", "Axis", "Fixed", "Unfit", "merge", "size_of"]

Atoms = npt.NDArray[np.int64]
"""The atom at each index of an axis; an index that repeats another one has the same atom."""


@dataclass(frozen=True)
class Fixed:
    """An axis nothing can be removed from: its size (None: open), who says so, and why.

    `quiet` marks what nobody asks about, such as the rows and columns of a kernel.
    """

    size: int | None
    node: str
    reason: str
    quiet: bool = False


Axis = Atoms | Fixed
Axes = tuple[Axis, ...]


class Unfit(Exception):
    """A row of the table cannot say how a node ties its axes; all that it touches is pinned."""


def size_of(axis: Axis) -> int | None:
    """The length of an axis, None where it is open."""
    return axis.size if isinstance(axis, Fixed) else len(axis)


def merge(axis: Atoms, position: int, shape: tuple[int, ...]) -> Atoms:
    """The atoms of an axis merged out of several, all but one of which are fixed."""
    spread = axis.reshape([-1 if place == position else 1 for place in range(len(shape))])
    return np.broadcast_to(spread, shape).reshape(-1)
