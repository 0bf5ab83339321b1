"""Ties of normalisations and reductions.

A normalisation ties its axis with scale and shift. One that takes its mean or variance *over* the
axis, as LayerNormalization does, computes them over the kept indices after a cut: such axes are
marked as blurred, for the cut is then exact only with respect to that reading.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.coupling.axes import Axes, Axis, Unfit, size_of
from graphopt.coupling.site import Rules, Site

__all__ = ["NORMALISATIONS"]

_OVER = "normalises over it, after a cut over the kept channels only"


def _scaled(site: Site, indices: Sequence[int], channel: Axis) -> None:
    for index in indices:
        if site.has(index):
            site.wiring.tie(channel, site.axes(index)[0])


def batch_norm(site: Site) -> Sequence[Axes | None]:
    """Scale, shift, mean and variance have one entry per channel."""
    data = site.axes(0)
    _scaled(site, (1, 2, 3, 4), data[1])
    return [data, *([(data[1],)] * (len(site.node.outputs) - 1))]


def instance_norm(site: Site) -> Sequence[Axes | None]:
    """Each channel is normalised over space, which must stay whole."""
    data = site.axes(0)
    _scaled(site, (1, 2), data[1])
    for axis in data[2:]:
        site.wiring.blur(axis, site.fixed(None, _OVER))
    return [data]


def layer_norm(site: Site) -> Sequence[Axes | None]:
    """Normalises over the axes from `axis` on; scale and shift are aligned with the last ones."""
    data = site.axes(0)
    start = site.attribute("axis", -1) % len(data)
    out = _over_last(site, data, start, (1, 2))
    return [out, *([(*data[:start], *site.held([1] * (len(data) - start), "averages"))] * 2)]


def _over_last(site: Site, data: Axes, start: int, indices: Sequence[int]) -> Axes:
    for axis in data[start:]:
        site.wiring.blur(axis, site.fixed(None, _OVER))
    scales = [site.axes(index) for index in indices if site.has(index)]
    return site.broadcast([data, *scales])


def skip_norm(site: Site) -> Sequence[Axes | None]:
    """Adds two inputs (and a bias), normalises over the last axis; returns the sum too."""
    scales = (2, 3, 4) if site.node.op == "SkipLayerNormalization" else (2, 3)
    data = site.broadcast([site.axes(0), site.axes(1)])
    out = _over_last(site, data, len(data) - 1, scales)
    return [out, None, None, out][: len(site.node.outputs)]


def group_norm(site: Site) -> Sequence[Axes | None]:
    """Whole groups can go; within a group the statistics change with every channel."""
    data = site.axes(0)
    groups, width = site.attribute("num_groups", 1), size_of(data[1])
    if width is None:
        raise Unfit("the number of its channels is open")
    outer, inner = site.wiring.fresh(groups), site.wiring.fresh(width // groups)
    site.wiring.split(data[1], [outer, inner], site.name)
    site.wiring.blur(inner, site.fixed(None, _OVER))
    for index in (1, 2):
        scale = site.axes(index)[0]
        site.wiring.tie(outer if size_of(scale) == groups != width else data[1], scale)
    for axis in data[2:]:
        site.wiring.blur(axis, site.fixed(None, _OVER))
    return [data]


def along(site: Site) -> Sequence[Axes | None]:
    """Softmax and the like need all of their axis (before version 13: of all axes from it on)."""
    data = site.axes(0)
    axis = site.attribute("axis", -1 if site.sizes.opset >= 13 else 1) % len(data)
    last = axis + 1 if site.sizes.opset >= 13 else len(data)
    for place in range(axis, last):
        site.pin(data[place], "compares the values along it")
    return [data]


def neighbours(site: Site) -> Sequence[Axes | None]:
    """LRN reads the neighbouring channels; after a cut those are others."""
    data = site.axes(0)
    site.wiring.blur(data[1], site.fixed(None, "reads neighbouring channels, after a cut others"))
    return [data]


def scaled_to_unit(site: Site) -> Sequence[Axes | None]:
    data = site.axes(0)
    site.wiring.blur(data[site.attribute("axis", -1)], site.fixed(None, _OVER))
    return [data]


def standardised(site: Site) -> Sequence[Axes | None]:
    data = site.axes(0)
    for axis in site.node.attrs.get("axes", [0, 2, 3]):
        site.wiring.blur(data[int(axis)], site.fixed(None, _OVER))
    return [data]


def reduction(site: Site) -> Sequence[Axes | None]:
    """Drops axes; what is not a plain sum changes by more than the removed indices' share."""
    data = site.axes(0)
    axes = site.numbers(1, "axes") if site.has(1) or "axes" in site.node.attrs else []
    if axes is None:
        raise Unfit("its axes are computed")
    if not axes and site.attribute("noop_with_empty_axes", 0):
        return [data]
    dropped = {axis % len(data) for axis in axes or range(len(data))}
    keep = bool(site.attribute("keepdims", 1))
    out: list[Axis] = []
    for place, axis in enumerate(data):
        if place not in dropped:
            out.append(axis)
            continue
        if site.node.op not in _SUMS:
            site.wiring.blur(axis, site.fixed(None, "reduces over the kept channels only"))
        if size_of(axis) == 1:
            site.pin(axis, "reduces over a single value")
        if keep:
            out.append(site.fixed(1, "reduces it to one value", quiet=True))
    return [tuple(out)]


def choice(site: Site) -> Sequence[Axes | None]:
    """ArgMax returns places along its axis, so all of it stays."""
    data = site.axes(0)
    axis = site.attribute("axis", 0) % len(data)
    site.pin(data[axis], "returns places along it")
    one: Axes = site.held([1], "returns one place", quiet=True)
    kept = one if site.attribute("keepdims", 1) else ()
    return [(*data[:axis], *kept, *data[axis + 1 :])]


def top(site: Site) -> Sequence[Axes | None]:
    data = site.axes(0)
    axis = site.attribute("axis", -1) % len(data)
    site.pin(data[axis], "orders the values along it")
    made = site.held([site.shape()[axis]], "orders the values along it")
    return [(*data[:axis], *made, *data[axis + 1 :])] * 2


_SUMS = frozenset({"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"})
_REDUCTIONS = (*_SUMS, "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin")

NORMALISATIONS: Rules = {
    **dict.fromkeys((*_REDUCTIONS, "ReduceProd"), reduction),
    "ArgMax": choice,
    "ArgMin": choice,
    "BatchNormalization": batch_norm,
    "GroupNormalization": group_norm,
    "Hardmax": along,
    "InstanceNormalization": instance_norm,
    "LRN": neighbours,
    "LayerNormalization": layer_norm,
    "LogSoftmax": along,
    "LpNormalization": scaled_to_unit,
    "MeanVarianceNormalization": standardised,
    "RMSNormalization": layer_norm,
    "SimplifiedLayerNormalization": layer_norm,
    "Softmax": along,
    "TopK": top,
    "com.microsoft:SimplifiedLayerNormalization": layer_norm,
    "com.microsoft:SkipLayerNormalization": skip_norm,
    "com.microsoft:SkipSimplifiedLayerNormalization": skip_norm,
}
