"""Ties of operators that look up or overwrite by indices of several axes, or make tensors anew."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.coupling.axes import Axes, Unfit, size_of
from graphopt.coupling.site import Rules, Site

__all__ = ["INDEXING"]


def _depth(site: Site, indices: Axes, rank: int) -> int:
    """How many axes an entry of the indices goes through."""
    depth = size_of(indices[-1]) if indices else None
    if depth is None or depth > rank:
        raise Unfit("the number of axes it looks up in is open")
    site.pin(indices[-1], "are indices", quiet=True)
    return depth


def gather_nd(site: Site) -> Sequence[Axes | None]:
    """The leading axes are looked up in; those behind them pass."""
    data, indices = site.axes(0), site.axes(1)
    shared = site.attribute("batch_dims", 0)
    stop = shared + _depth(site, indices, len(data) - shared)
    for axis in data[shared:stop]:
        site.pin(axis, "looks indices up in it")
    batch = [
        site.wiring.tie(mine, other)
        for mine, other in zip(data[:shared], indices[:shared], strict=True)
    ]
    return [(*batch, *indices[shared:-1], *data[stop:])]


def scatter_nd(site: Site) -> Sequence[Axes | None]:
    """The leading axes are written into; those behind them tie with the updates'."""
    data, indices, updates = (site.axes(index) for index in range(3))
    depth = _depth(site, indices, len(data))
    for axis in data[:depth]:
        site.pin(axis, "writes into single indices of it")
    for mine, other in zip(indices[:-1], updates, strict=False):
        site.wiring.tie(mine, other)
    behind = [
        site.wiring.tie(mine, other)
        for mine, other in zip(data[depth:], updates[len(indices) - 1 :], strict=True)
    ]
    return [(*data[:depth], *behind)]


def size_of_all(site: Site) -> Sequence[Axes | None]:
    """The number of elements must not change."""
    for axis in site.axes(0):
        site.pin(axis, "counts its elements")
    return [()]


def filled(site: Site) -> Sequence[Axes | None]:
    """The sizes are computed: where they are known it is a constant and no node any more."""
    return [site.held(site.shape(), "computes the size of it")]


INDEXING: Rules = {
    "ConstantOfShape": filled,
    "GatherND": gather_nd,
    "ScatterND": scatter_nd,
    "Size": size_of_all,
}
