"""Lowerings of operators that pick or place elements by index, or find indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch.nn import functional

from graphopt.lens.site import Emitted, Row, Site

__all__ = ["ROWS"]


def gather(x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """Pick slices along an axis; the index's axes take its place."""
    axis = axis + x.dim() if axis < 0 else axis
    index = _positive(index, x.shape[axis]).to(x.device)
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _positive(index: torch.Tensor, size: int) -> torch.Tensor:
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


def embed(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of a table."""
    return functional.embedding(_positive(index, table.shape[0]), table)


def _gather(site: Site) -> fx.Node:
    axis, picks = site.integer("axis", 0), site.constant(1)
    if picks is not None and picks.ndim == 0:
        return site.call(torch.select, site.arg(0), axis, int(picks))
    if axis == 0 and site.rank(0) == 2 and site.around.is_weight(site.name(0)):
        return site.call(embed, site.arg(0), site.arg(1))
    return site.call(gather, site.arg(0), site.arg(1), axis)


def gather_elements(x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.gather(x, axis, _positive(index, x.shape[axis]))


def _gather_elements(site: Site) -> fx.Node:
    return site.call(gather_elements, site.arg(0), site.arg(1), site.integer("axis", 0))


def _tuples(index: torch.Tensor, shape: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Index tuples (the last axis) as one non-negative index per axis."""
    return tuple(_positive(index[..., i], shape[i]) for i in range(index.shape[-1]))


def gather_nd(x: torch.Tensor, index: torch.Tensor, batch_axes: int) -> torch.Tensor:
    """Pick slices by index tuples, sample by sample for the first axes."""
    if not batch_axes:
        return x[_tuples(index, x.shape)]
    lead = x.shape[:batch_axes]
    flat = x.reshape(-1, *x.shape[batch_axes:])
    picks = index.reshape(flat.shape[0], -1, index.shape[-1])
    rows = torch.arange(flat.shape[0], device=x.device).unsqueeze(1).expand(picks.shape[:2])
    found = flat[(rows, *_tuples(picks, flat.shape[1:]))]
    return found.reshape(*lead, *index.shape[batch_axes:-1], *found.shape[2:])


def _gather_nd(site: Site) -> fx.Node:
    return site.call(gather_nd, site.arg(0), site.arg(1), site.integer("batch_dims", 0))


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(
    x: torch.Tensor, index: torch.Tensor, updates: torch.Tensor, axis: int, how: str
) -> torch.Tensor:
    """Place elements along an axis, replacing or joining what is there."""
    index, updates = _positive(index, x.shape[axis]), updates.to(x.dtype)
    if how == "none":
        return torch.scatter(x, axis, index, updates)
    return torch.scatter_reduce(x, axis, index, updates, _REDUCTIONS[how])


def _scatter_elements(site: Site) -> fx.Node:
    axis, how = site.integer("axis", 0), site.text("reduction", "none")
    return site.call(scatter_elements, *site.args(), axis, how)


def scatter_nd(
    x: torch.Tensor, index: torch.Tensor, updates: torch.Tensor, how: str
) -> torch.Tensor:
    """Place slices by index tuples, replacing or joining what is there."""
    updates = updates.to(x.dtype)
    places = _tuples(index, x.shape)
    if how in ("none", "add"):
        return x.index_put(places, updates, accumulate=how == "add")
    depth = len(places)
    flat = x.reshape(-1, *x.shape[depth:])
    row = torch.zeros_like(places[0])
    for place, size in zip(places, x.shape[:depth], strict=True):
        row = row * size + place
    values = updates.reshape(-1, *x.shape[depth:])
    index = row.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
    return flat.scatter_reduce(0, index, values, _REDUCTIONS[how]).reshape(x.shape)


def _scatter_nd(site: Site) -> fx.Node:
    return site.call(scatter_nd, *site.args(), site.text("reduction", "none"))


def one_hot(
    index: torch.Tensor, depth: Sequence[float], values: torch.Tensor, axis: int
) -> torch.Tensor:
    """`values[1]` at the index along a new axis of size `depth`, `values[0]` elsewhere."""
    size = int(depth[0])
    axis = axis + index.dim() + 1 if axis < 0 else axis
    places = (index.to(torch.int64) % size if size else index).unsqueeze(axis)
    inside = ((index >= -size) & (index < size)).unsqueeze(axis)
    shape = [1] * (index.dim() + 1)
    shape[axis] = size
    hot = (torch.arange(size, device=index.device).reshape(shape) == places) & inside
    return torch.where(hot, values[1], values[0])


def _one_hot(site: Site) -> fx.Node:
    depth = site.sizes(1)
    return site.call(one_hot, site.arg(0), depth, site.arg(2), site.integer("axis", -1))


def top_k(
    x: torch.Tensor, k: Sequence[int], axis: int, *, greatest: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k extreme elements along an axis in order, and where they are; ties keep their order."""
    values, places = torch.sort(x, dim=axis, descending=greatest, stable=True)
    return values.narrow(axis, 0, k[0]), places.narrow(axis, 0, k[0])


def _top_k(site: Site) -> Emitted:
    k = site.sizes(1) if site.opset >= 10 else (site.integer("k", 1),)
    greatest = site.flag("largest", default=True)
    made = site.call(top_k, site.arg(0), k, site.integer("axis", -1), greatest=greatest)
    return site.unpack(made, 2)


def non_zero(x: torch.Tensor) -> torch.Tensor:
    """Index tuples of elements that are not zero, one column each."""
    return torch.nonzero(x).t()


def _non_zero(site: Site) -> fx.Node:
    return site.call(non_zero, site.arg(0))


def compress(x: torch.Tensor, condition: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Slices (or elements, without an axis) where a possibly short condition holds."""
    picks = torch.nonzero(condition).reshape(-1)
    return x.reshape(-1)[picks] if axis is None else x.index_select(axis, picks)


def _compress(site: Site) -> fx.Node:
    axis = site.integer("axis", 0) if "axis" in site.attributes else None
    return site.call(compress, site.arg(0), site.arg(1), axis)


def unique(
    x: torch.Tensor, axis: int | None, *, ordered: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distinct slices, where each is first, where each slice went, and how often each occurs."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(inverse.numel(), device=x.device)
    start = torch.full_like(counts, inverse.numel())
    first = start.scatter_reduce(0, inverse.reshape(-1), places, "amin")
    if ordered:
        return values, first, inverse, counts
    order = torch.argsort(first)
    rank = torch.argsort(order)
    return values.index_select(axis, order), first[order], rank[inverse], counts[order]


def _unique(site: Site) -> Emitted:
    axis = site.integer("axis", 0) if "axis" in site.attributes else None
    made = site.call(unique, site.arg(0), axis, ordered=site.flag("sorted", default=True))
    return site.unpack(made, 4)


def tensor_scatter(
    past: torch.Tensor,
    update: torch.Tensor,
    starts: torch.Tensor | None,
    axis: int,
    *,
    circular: bool,
) -> torch.Tensor:
    """Write new steps into a cache, from each sample's own start on."""
    steps = torch.arange(update.shape[axis], device=past.device)
    begin = past.new_zeros(past.shape[0], dtype=torch.int64) if starts is None else starts
    places = begin.unsqueeze(1) + steps
    places = places % past.shape[axis] if circular else places
    shape = [1] * past.dim()
    shape[0], shape[axis] = past.shape[0], update.shape[axis]
    return past.scatter(axis, places.reshape(shape).expand(update.shape), update)


def _tensor_scatter(site: Site) -> fx.Node:
    circular = site.text("mode", "linear") == "circular"
    args = site.arg(0), site.arg(1), site.optional(2)
    return site.call(tensor_scatter, *args, site.integer("axis", -2), circular=circular)


ROWS: Mapping[str, Row] = {
    "Compress": _compress,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TensorScatter": _tensor_scatter,
    "TopK": _top_k,
    "Unique": _unique,
}
