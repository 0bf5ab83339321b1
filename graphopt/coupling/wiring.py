"""Collect what the rows of the table say: ties, pins, choices and blurs, all as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.coupling.axes import Atoms, Axes, Axis, Fixed, Unfit, merge, size_of

__all__ = ["Choice", "Even", "Wiring"]


@dataclass(frozen=True, eq=False)
class Choice:
    """An axis that is the product of several: it can follow one of them, the others are pinned.

    `whole` has one dimension per factor. `follows` maps the places of the factors that could be
    followed to their atoms.
    """

    whole: Atoms
    follows: dict[int, Atoms]
    node: str


@dataclass(frozen=True, eq=False)
class Even:
    """Rows of atoms (the groups of a convolution) that must keep equally many.

    Preferably the k-th of all rows go together, and with them `columns`, the input axis of the
    weight. Where that would tie everything to everything, only the number is kept equal and the
    weight is cut group by group.
    """

    rows: Atoms
    columns: Atoms | None
    weight: str
    why: Fixed


class Wiring:
    """The growing record of one graph's axes. Rules write it, the solver reads it."""

    def __init__(self) -> None:
        self.count = 0
        self.axes: dict[str, Axes | None] = {}
        self.ties: list[tuple[Atoms, Atoms]] = []
        self.pins: list[tuple[Atoms, Fixed]] = []
        self.blurs: list[tuple[Atoms, Fixed]] = []
        self.choices: list[Choice] = []
        self.evens: list[Even] = []

    def fresh(self, size: int) -> Atoms:
        """New atoms, tied to nothing."""
        atoms = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return atoms

    def tie(self, left: Axis, right: Axis) -> Axis:
        """Make two axes one, index by index; return that axis."""
        if left is right:
            return left
        if isinstance(left, Fixed) or isinstance(right, Fixed):
            fixed, other = (left, right) if isinstance(left, Fixed) else (right, left)
            assert isinstance(fixed, Fixed)
            self.pin(other, fixed)
            return fixed
        if len(left) != len(right):
            raise Unfit(f"axes of {len(left)} and {len(right)} indices meet")
        self.ties.append((left, right))
        return left

    def pin(self, axis: Axis, why: Fixed) -> None:
        """Let nothing be removed from an axis."""
        if not isinstance(axis, Fixed):
            self.pins.append((axis, why))

    def pin_all(self, axes: Sequence[Axis] | None, why: Fixed) -> None:
        for axis in axes or ():
            self.pin(axis, why)

    def blur(self, axis: Axis, why: Fixed) -> None:
        """Note that removal from an axis changes more than what reads the removed indices."""
        if not isinstance(axis, Fixed):
            self.blurs.append((axis, why))

    def split(self, whole: Axis, factors: Sequence[Axis], node: str) -> None:
        """Say that `whole` is the product of `factors`, outermost first."""
        if isinstance(whole, Fixed):
            for factor in factors:
                self.pin(factor, whole)
            return
        sizes = _sizes(factors)
        if math.prod(sizes) != len(whole):
            raise Unfit(f"an axis of {len(whole)} indices is not {sizes}")
        follows = {
            place: factor
            for place, factor in enumerate(factors)
            if not isinstance(factor, Fixed) and len(factor) > 1
        }
        if not follows:
            self.pin(whole, next(factor for factor in factors if isinstance(factor, Fixed)))
            return
        self.choices.append(Choice(whole.reshape(sizes), follows, node))

    def join(self, factors: Sequence[Axis], node: str) -> Axis:
        """The axis that several make when they are merged, outermost first."""
        loose = [place for place, axis in enumerate(factors) if not isinstance(axis, Fixed)]
        sizes = [size_of(axis) for axis in factors]
        if not loose:
            first = factors[0]
            assert isinstance(first, Fixed)
            known = [size for size in sizes if size is not None]
            total = math.prod(known) if len(known) == len(sizes) else None
            return Fixed(total, first.node, first.reason, first.quiet)
        shape = _sizes(factors)
        only = factors[loose[0]]
        if len(loose) == 1 and not isinstance(only, Fixed):
            return merge(only, loose[0], shape)
        whole = self.fresh(math.prod(shape))
        self.split(whole, factors, node)
        return whole

    def even(self, rows: Axis, groups: int, why: Fixed, columns: Axis, weight: str) -> None:
        """Say that an axis falls into groups that must keep equally many.

        `columns` is the axis of `weight` that all groups share; without one it is Fixed.
        """
        if isinstance(rows, Fixed):
            self.pin(columns, rows)
        else:
            shared = None if isinstance(columns, Fixed) else columns
            self.evens.append(Even(rows.reshape(groups, -1), shared, weight, why))


def _sizes(factors: Sequence[Axis]) -> tuple[int, ...]:
    sizes = [size_of(factor) for factor in factors]
    known = tuple(size for size in sizes if size is not None)
    if len(known) != len(sizes):
        raise Unfit("a merged or split axis has an open size")
    return known
