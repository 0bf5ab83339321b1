"""Lowerings of reductions and running sums along axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import fx

from graphopt.lens.site import Row, Site

__all__ = ["ROWS"]

Axes = tuple[int, ...]


class _Reduction(Protocol):
    def __call__(self, x: torch.Tensor, axes: Axes, *, keep: bool) -> torch.Tensor: ...


def total(x: torch.Tensor, axes: Axes, *, keep: bool) -> torch.Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)


def mean(x: torch.Tensor, axes: Axes, *, keep: bool) -> torch.Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keep)
    count = math.prod(x.shape[axis] for axis in axes)
    return torch.div(total(x, axes, keep=keep), count, rounding_mode="trunc")


def largest(x: torch.Tensor, axes: Axes, *, keep: bool) -> torch.Tensor:
    if x.dtype == torch.bool:
        return largest(x.to(torch.uint8), axes, keep=keep).to(torch.bool)
    if _is_empty(x, axes):
        low = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        return total(x, axes, keep=keep).fill_(low)
    return torch.amax(x, axes, keep)


def smallest(x: torch.Tensor, axes: Axes, *, keep: bool) -> torch.Tensor:
    if x.dtype == torch.bool:
        return smallest(x.to(torch.uint8), axes, keep=keep).to(torch.bool)
    if _is_empty(x, axes):
        high = math.inf if x.is_floating_point() else torch.iinfo(x.dtype).max
        return total(x, axes, keep=keep).fill_(high)
    return torch.amin(x, axes, keep)


def _is_empty(x: torch.Tensor, axes: Sequence[int]) -> bool:
    return any(x.shape[axis] == 0 for axis in axes)


def product(x: torch.Tensor, axes: Axes, *, keep: bool) -> torch.Tensor:
    out = x
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        out = torch.prod(out, axis, keep, dtype=x.dtype)
    return out


def sum_of_magnitudes(x: torch.Tensor, axes: Axes, *, keep: bool) -> torch.Tensor:
    return total(x.abs(), axes, keep=keep)


def root_of_squares(x: torch.Tensor, axes: Axes, *, keep: bool) -> torch.Tensor:
    if x.is_floating_point():
        norm: torch.Tensor = torch.linalg.vector_norm(x, 2, axes, keep)
        return norm
    return torch.sqrt(total(x * x, axes, keep=keep).to(torch.float64)).to(x.dtype)


def log_of_sum(x: torch.Tensor, axes: Axes, *, keep: bool) -> torch.Tensor:
    return torch.log(total(x, axes, keep=keep)).to(x.dtype)


def log_of_exponentials(x: torch.Tensor, axes: Axes, *, keep: bool) -> torch.Tensor:
    return torch.logsumexp(x.to(x.dtype if x.is_floating_point() else torch.float64), axes, keep)


def sum_of_squares(x: torch.Tensor, axes: Axes, *, keep: bool) -> torch.Tensor:
    return total(x * x, axes, keep=keep)


def reduce(
    x: torch.Tensor,
    axes: Sequence[int] | None,
    *,
    rule: _Reduction,
    keep: bool,
    none_is_none: bool,
) -> torch.Tensor:
    """Reduce along axes; no axes are all of them, or truly none where the node says so."""
    if not axes:
        if none_is_none:
            return rule(x.unsqueeze(0), (0,), keep=False)
        axes = tuple(range(x.dim()))
    if not axes:
        return rule(x.unsqueeze(0), (0,), keep=False)
    return rule(x, tuple(axes), keep=keep)


def _reduction(rule: _Reduction) -> Row:
    def row(site: Site) -> fx.Node:
        axes = site.sizes(1, "axes")
        keep, none = site.flag("keepdims", default=True), site.flag("noop_with_empty_axes")
        if rule is mean and isinstance(axes, tuple) and axes and site.is_float(0):
            return site.call(torch.mean, site.arg(0), axes, keep)
        return site.bound(reduce, site.arg(0), axes, rule=rule, keep=keep, none_is_none=none)

    return row


def index_of(
    x: torch.Tensor,
    axis: int,
    *,
    keep: bool,
    last: bool,
    greatest: bool,
) -> torch.Tensor:
    """The index of an extreme along an axis: the first one's, or the last one's."""
    if last:
        x = x.flip(axis)
    best = x.amax(axis, keepdim=True) if greatest else x.amin(axis, keepdim=True)
    found = torch.argmax((x == best).to(torch.uint8), axis, keep)
    return x.shape[axis] - 1 - found if last else found


def _argument(*, greatest: bool) -> Row:
    def row(site: Site) -> fx.Node:
        return site.call(
            index_of,
            site.arg(0),
            site.integer("axis", 0),
            keep=site.flag("keepdims", default=True),
            last=site.flag("select_last_index"),
            greatest=greatest,
        )

    return row


def running(
    x: torch.Tensor,
    axis: int | Sequence[int],
    *,
    rule: Callable[..., torch.Tensor],
    exclusive: bool,
    backwards: bool,
) -> torch.Tensor:
    """A running sum or product; an exclusive one leaves out the element itself."""
    along = axis if isinstance(axis, int) else axis[0]
    x = x.flip(along) if backwards else x
    out = rule(x, along, dtype=x.dtype)
    if exclusive:
        neutral = torch.full_like(out.narrow(along, 0, 1), 0 if rule is torch.cumsum else 1)
        out = torch.cat([neutral, out.narrow(along, 0, out.shape[along] - 1)], along)
    return out.flip(along) if backwards else out


def _running(rule: Callable[..., torch.Tensor]) -> Row:
    def row(site: Site) -> fx.Node:
        exclusive, backwards = site.flag("exclusive"), site.flag("reverse")
        x, axis = site.arg(0), site.sizes(1)
        return site.bound(running, x, axis, rule=rule, exclusive=exclusive, backwards=backwards)

    return row


ROWS: Mapping[str, Row] = {
    "ArgMax": _argument(greatest=True),
    "ArgMin": _argument(greatest=False),
    "CumProd": _running(torch.cumprod),
    "CumSum": _running(torch.cumsum),
    "ReduceL1": _reduction(sum_of_magnitudes),
    "ReduceL2": _reduction(root_of_squares),
    "ReduceLogSum": _reduction(log_of_sum),
    "ReduceLogSumExp": _reduction(log_of_exponentials),
    "ReduceMax": _reduction(largest),
    "ReduceMean": _reduction(mean),
    "ReduceMin": _reduction(smallest),
    "ReduceProd": _reduction(product),
    "ReduceSum": _reduction(total),
    "ReduceSumSquare": _reduction(sum_of_squares),
}
