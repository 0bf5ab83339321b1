"""What can be said of shapes before a model runs: equality, and targets that a file can hold."""

from __future__ import annotations

import numpy as np

from graphopt.ir import Array, Dims

__all__ = ["count_open", "equal_shapes", "expand_target", "reshape_target"]


def equal_shapes(one: Dims | None, other: Dims | None) -> bool:
    """Whether two shapes are provably the same: equal numbers, or one name for both."""
    return one is not None and one == other and None not in one


def count_open(one: Dims, other: Dims) -> int:
    """How many dimensions of two shapes of one rank are not provably the same."""
    return sum(a is None or a != b for a, b in zip(one, other, strict=True))


def reshape_target(source: Dims | None, result: Dims | None) -> Array | None:
    """A constant that reshapes `source` into `result`; None if no constant can.

    A dimension that only has a name is copied (0) where `source` has it at the same place; one
    other may be computed (-1), for which no size may be zero.
    """
    if result is None or 0 in result:
        return None
    target = [dim if isinstance(dim, int) else None for dim in result]
    for axis, (dim, old) in enumerate(zip(result, source or (), strict=False)):
        if isinstance(dim, str) and dim == old:
            target[axis] = 0
    if target.count(None) > 1:
        return None
    return np.array([-1 if dim is None else dim for dim in target], np.int64)


def expand_target(source: Dims | None, result: Dims | None) -> Array | None:
    """A constant that expands `source` to `result`; None if no constant can."""
    if source is None or result is None:
        return None
    old = (1,) * (len(result) - len(source)) + source
    target = [
        dim if isinstance(dim, int) else 1 if dim is not None and dim == before else None
        for before, dim in zip(old, result, strict=True)
    ]
    return None if None in target else np.array(target, np.int64)
