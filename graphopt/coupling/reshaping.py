"""Ties of Reshape and its kin: sizes are factored, and merged or split axes follow one factor."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from graphopt.coupling.axes import Axes, Axis, Fixed, Unfit, size_of
from graphopt.coupling.site import Rules, Site

__all__ = ["RESHAPING", "factor", "is_copied"]


def _same_elements(site: Site) -> Sequence[Axes | None]:
    """Regroup axes; what is merged with or split from others follows one factor of it."""
    return [_regroup(site, site.axes(0), site.shape())]


def reshape(site: Site) -> Sequence[Axes | None]:
    """Pinned where the target's sizes are computed in a way that no constant can replace."""
    data, shape = site.axes(0), site.shape()
    out = _regroup(site, data, shape)
    target = site.sizes.target(site.node.inputs[1].name) if site.has(1) else []
    if target is None or not _expressible(data, out, target):
        why = site.fixed(None, "computes the sizes it reshapes to")
        site.wiring.pin_all(data, why)
        site.wiring.pin_all(out, why)
    return [out]


def _expressible(data: Axes, out: Axes, target: Sequence[int | None]) -> bool:
    """Whether a constant can say the target: computed sizes as 0 (copied) and one as -1."""
    computed = [place for place, element in enumerate(target) if element is None]
    rest = [place for place in computed if not is_copied(data, out, place)]
    return len(rest) + (-1 in target) <= 1


def is_copied(data: Axes, out: Axes, place: int) -> bool:
    """Whether an output axis has the size of the input axis at the same place."""
    if place >= len(data) or size_of(data[place]) is None:
        return False
    return size_of(data[place]) == size_of(out[place])


def squeeze(site: Site) -> Sequence[Axes | None]:
    data = site.axes(0)
    listed = site.numbers(1, "axes") if site.has(1) or "axes" in site.node.attrs else None
    if listed is None and site.has(1):
        raise Unfit("its axes are computed")
    if listed is None:
        listed = [place for place, axis in enumerate(data) if size_of(axis) == 1]
        for axis in data:
            if not isinstance(axis, Fixed) and len(axis) > 1:
                continue
            if size_of(axis) is None:
                raise Unfit("it is not known which axes it drops")
    gone = {place % len(data) for place in listed}
    for place in gone:
        site.pin(data[place], "drops it")
    return [tuple(axis for place, axis in enumerate(data) if place not in gone)]


def unsqueeze(site: Site) -> Sequence[Axes | None]:
    data, listed = site.axes(0), site.numbers(1, "axes")
    if listed is None:
        raise Unfit("its axes are computed")
    rank = len(data) + len(listed)
    new = {place % rank for place in listed}
    rest = iter(data)
    one = site.fixed(1, "adds it", quiet=True)
    return [tuple(one if place in new else next(rest) for place in range(rank))]


def factor(left: Sequence[int], right: Sequence[int]) -> list[int] | None:
    """The finest sizes that both sides are products of consecutive ones of; None if none are.

    >>> factor([6, 4], [2, 12])
    [2, 3, 4]
    """
    ends = sorted(
        {*itertools.accumulate(left, int.__mul__), *itertools.accumulate(right, int.__mul__)}
    )
    sizes, before = [], 1
    for end in ends:
        if end % before:
            return None
        sizes.append(end // before)
        before = end
    return sizes


def _regroup(site: Site, data: Axes, shape: Sequence[int | None]) -> Axes:
    """Match axes from both ends, then group by group of equal products."""
    sizes = [size_of(axis) for axis in data]
    if sizes == list(shape):
        return data
    head = _matching(sizes, shape)
    tail = _matching(sizes[head:][::-1], list(shape[head:])[::-1])
    stop, end = len(data) - tail, len(shape) - tail
    middle = data[head:stop]
    inner, outer = _closed(sizes[head:stop], shape[head:end])
    if inner is None or outer is None:
        why = site.fixed(None, "merges or splits an axis of open size")
        site.wiring.pin_all(middle, why)
        made: Axes = site.held(shape[head:end], why.reason)
    else:
        made = _groups(site, middle, inner, outer)
    return (*data[:head], *made, *data[stop:])


def _matching(left: Sequence[int | None], right: Sequence[int | None]) -> int:
    """How many leading sizes are known to be the same."""
    count = 0
    for mine, other in zip(left, right, strict=False):
        if mine is None or mine != other:
            break
        count += 1
    return count


_STAND_IN = 1_000_003
"""A prime for the one open size on either side: equal products make it the same on both."""


def _closed(
    left: Sequence[int | None], right: Sequence[int | None]
) -> tuple[list[int] | None, list[int] | None]:
    if list(left).count(None) > 1 or list(left).count(None) != list(right).count(None):
        return None, None
    inner = [_STAND_IN if size is None else size for size in left]
    outer = [_STAND_IN if size is None else size for size in right]
    same = _product(inner) == _product(outer) and 0 not in inner
    return (inner, outer) if same else (None, None)


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _groups(site: Site, data: Axes, inner: Sequence[int], outer: Sequence[int]) -> Axes:
    """Walk both sides; whenever the products agree a group is complete."""
    for axis, size in zip(data, inner, strict=True):
        if size == 1:
            site.pin(axis, "merges it away", quiet=True)
    left = [(axis, size) for axis, size in zip(data, inner, strict=True) if size != 1]
    right = [(place, size) for place, size in enumerate(outer) if size != 1]
    made: list[Axis] = [site.fixed(1, "adds it", quiet=True)] * len(outer)
    while left:
        ours, theirs = [left.pop(0)], [right.pop(0)]
        while _product([s for _, s in ours]) != _product([s for _, s in theirs]):
            smaller = _product([s for _, s in ours]) < _product([s for _, s in theirs])
            if smaller:
                ours.append(left.pop(0))
            else:
                theirs.append(right.pop(0))
        axes = _group(
            site, [axis for axis, _ in ours], [s for _, s in ours], [s for _, s in theirs]
        )
        for (place, _), axis in zip(theirs, axes, strict=True):
            made[place] = axis
    return tuple(made)


def _group(site: Site, data: list[Axis], inner: list[int], outer: list[int]) -> Sequence[Axis]:
    if len(inner) == len(outer) == 1:
        return data
    sizes = factor(inner, outer)
    if sizes is None or _STAND_IN in (*inner, *outer):
        why = site.fixed(None, "regroups an axis across its factors")
        site.wiring.pin_all(data, why)
        return [site.fixed(None if s == _STAND_IN else s, why.reason) for s in outer]
    factors = _factor_axes(site, data, inner, sizes)
    taken, made = 0, []
    for size in outer:
        first, product = taken, 1
        while product < size:
            product *= sizes[taken]
            taken += 1
        parts = factors[first:taken]
        made.append(parts[0] if len(parts) == 1 else site.wiring.join(parts, site.name))
    return made


def _factor_axes(site: Site, data: list[Axis], inner: list[int], sizes: list[int]) -> list[Axis]:
    """One axis per factor: an input axis where it is that factor, new atoms where it is split."""
    factors: list[Axis] = []
    taken = 0
    for axis, size in zip(data, inner, strict=True):
        first, product = taken, 1
        while product < size:
            product *= sizes[taken]
            taken += 1
        if taken - first == 1:
            factors.append(axis)
        elif isinstance(axis, Fixed):
            factors.extend(
                Fixed(part, axis.node, axis.reason, axis.quiet) for part in sizes[first:taken]
            )
        else:
            new = [_split_off(site, part) for part in sizes[first:taken]]
            site.wiring.split(axis, new, site.name)
            factors.extend(new)
    return factors


def _split_off(site: Site, size: int) -> Axis:
    if site.sizes.is_open(size):
        return site.fixed(size, "is of open size", quiet=True)
    return site.wiring.fresh(size)


RESHAPING: Rules = {
    "Flatten": _same_elements,
    "Reshape": reshape,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "com.microsoft:ExpandDims": _same_elements,
}
