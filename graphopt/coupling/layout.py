"""Ties of operators that cut, join, repeat and permute axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.coupling.axes import Axes, Axis, Fixed, Unfit, size_of
from graphopt.coupling.site import Rules, Site

__all__ = ["LAYOUT"]


def transpose(site: Site) -> Sequence[Axes | None]:
    data = site.axes(0)
    order = site.node.attrs.get("perm") or range(len(data))[::-1]
    return [tuple(data[int(place)] for place in order)]


def concat(site: Site) -> Sequence[Axes | None]:
    """The joined axis is one after the other; all others tie."""
    parts = [site.axes(index) for index in range(len(site.node.inputs))]
    axis = site.attribute("axis", 1) % len(parts[0])
    out = list(parts[0])
    for part in parts[1:]:
        for place, (mine, other) in enumerate(zip(out, part, strict=True)):
            if place != axis:
                out[place] = site.wiring.tie(mine, other)
    out[axis] = _joined(site, [part[axis] for part in parts])
    return [tuple(out)]


def _joined(site: Site, parts: Sequence[Axis]) -> Axis:
    sizes = [size_of(part) for part in parts]
    known = [size for size in sizes if size is not None]
    loose = [part for part in parts if not isinstance(part, Fixed)]
    if not loose or len(known) != len(sizes):
        why = next((part for part in parts if isinstance(part, Fixed)), None)
        for part in loose:
            site.pin(part, "joins it with an axis of open size")
        assert why is not None, "an axis of atoms has a size"
        total = sum(known) if len(known) == len(sizes) else None
        return Fixed(total, why.node, why.reason, why.quiet)
    return np.concatenate([_loosened(site, part) for part in parts])


def _loosened(site: Site, axis: Axis) -> np.ndarray:
    """A fixed axis as atoms that are pinned for its reason."""
    if not isinstance(axis, Fixed):
        return axis
    assert axis.size is not None
    atoms = site.wiring.fresh(axis.size)
    site.wiring.pin(atoms, axis)
    return atoms


def split(site: Site) -> Sequence[Axes | None]:
    data = site.axes(0)
    axis = site.attribute("axis", 0) % len(data)
    whole = data[axis]
    if isinstance(whole, Fixed):
        outs = [site.shape(index)[axis] for index in range(len(site.node.outputs))]
        parts: list[Axis] = [Fixed(s, whole.node, whole.reason, whole.quiet) for s in outs]
    else:
        ends = np.cumsum(_split_sizes(site, len(whole)))
        if ends[-1] != len(whole) or (site.has(1) and not site.literal(1)):
            raise Unfit("the sizes it splits into are computed")
        parts = list(np.split(whole, ends[:-1]))
    return [(*data[:axis], part, *data[axis + 1 :]) for part in parts]


def _split_sizes(site: Site, total: int) -> list[int]:
    given = site.numbers(1, "split") if site.has(1) or "split" in site.node.attrs else None
    if given is not None:
        return given
    if site.has(1):
        raise Unfit("the sizes it splits into are computed")
    count = len(site.node.outputs)
    step = -(-total // count)
    return [min(step, total - step * place) for place in range(count)]


def slices(site: Site) -> Sequence[Axes | None]:
    data = list(site.axes(0))
    starts, ends = site.numbers(1, "starts"), site.numbers(2, "ends")
    axes = _optional(site, 3, "axes", list(range(len(starts or ()))))
    steps = _optional(site, 4, "steps", [1] * len(axes or ()))
    if starts is None or ends is None or axes is None or steps is None:
        if axes is None:
            axes = list(range(len(data)))
        for place in axes:
            site.pin(data[place], "computes the bounds of a slice of it")
            data[place] = site.fixed(site.shape()[place], "slices it")
        return [tuple(data)]
    literal = "starts" in site.node.attrs or all(site.literal(index) for index in (1, 2))
    for start, end, place, step in zip(starts, ends, axes, steps, strict=True):
        data[place] = _sliced(site, data[place], (start, end, step), literal=literal, place=place)
    return [tuple(data)]


def _optional(site: Site, index: int, key: str, default: list[int]) -> list[int] | None:
    return site.numbers(index, key) if site.has(index) or key in site.node.attrs else default


def _sliced(
    site: Site, axis: Axis, bounds: tuple[int, int, int], *, literal: bool, place: int
) -> Axis:
    if isinstance(axis, Fixed):
        return Fixed(site.shape()[place], axis.node, axis.reason, axis.quiet)
    start, end, step = bounds
    stop = None if step < 0 and end < -len(axis) else end
    picked = axis[start:stop:step]
    if len(picked) == len(axis) and step == 1:
        if end < len(axis) and not literal:
            site.pin(axis, "computes the bounds of a slice of it")
        return axis
    if step != 1 or not literal or not len(picked):
        site.pin(axis, "takes every other index" if literal else "computes the bounds of a slice")
        return site.fixed(len(picked), "slices it")
    return picked


def gather(site: Site) -> Sequence[Axes | None]:
    """Constant indices pick atoms; computed ones need the whole axis."""
    data, axis = site.axes(0), site.attribute("axis", 0)
    axis %= len(data)
    indices = site.constant(1)
    whole = data[axis]
    if indices is None or isinstance(whole, Fixed):
        site.pin(whole, "looks indices up in it")
        picked: Axes = site.axes(1)
        if indices is not None:
            site.wiring.pin_all(picked, site.fixed(None, "are indices"))
    else:
        if indices.ndim != 1 or not site.literal(1):
            taken = whole[indices.astype(np.int64).reshape(-1)]
            site.pin(taken, "takes single indices out of it")
            picked = site.held(indices.shape, "takes single indices out of it")
        else:
            picked = (whole[indices.astype(np.int64)],)
    return [(*data[:axis], *picked, *data[axis + 1 :])]


def gather_elements(site: Site) -> Sequence[Axes | None]:
    """Indices are as many as outputs; off the axis they go along with the data."""
    data, indices = site.axes(0), site.axes(1)
    axis = site.attribute("axis", 0) % len(data)
    site.pin(data[axis], "looks indices up in it")
    out = list(indices)
    for place, (mine, other) in enumerate(zip(data, indices, strict=True)):
        if place == axis:
            continue
        if size_of(mine) == size_of(other):
            out[place] = site.wiring.tie(mine, other)
        else:
            site.pin(mine, "takes a part of it")
            site.pin(other, "takes a part of another axis")
    return [tuple(out)]


def expand(site: Site) -> Sequence[Axes | None]:
    """Axes that keep their size pass; one of size 1 that is repeated is pinned."""
    data, shape = site.axes(0), site.shape()
    target = site.sizes.target(site.node.inputs[1].name)
    repairable = site.literal(1)
    out: list[Axis] = list(site.held(shape[: len(shape) - len(data)], "repeats it"))
    for place, axis in enumerate(data, start=len(shape) - len(data)):
        if size_of(axis) == 1 and shape[place] != 1:
            site.pin(axis, "repeats it")
            out.append(site.fixed(shape[place], "repeats it"))
            continue
        back = place - len(shape)
        wanted = None if target is None else target[back] if len(target) >= -back else 1
        if wanted != 1 and not repairable:
            site.pin(axis, "computes the size of it")
        out.append(axis)
    return [tuple(out)]


def tile(site: Site) -> Sequence[Axes | None]:
    """A repeated axis has every atom several times."""
    data, repeats = site.axes(0), site.constant(1)
    if repeats is None:
        raise Unfit("the number of repetitions is computed")
    out: list[Axis] = []
    for place, (axis, count) in enumerate(zip(data, repeats.reshape(-1), strict=True)):
        if int(count) == 1:
            out.append(axis)
        elif isinstance(axis, Fixed):
            out.append(Fixed(site.shape()[place], axis.node, axis.reason, axis.quiet))
        elif int(count) < 1 or not site.literal(1):
            raise Unfit("the number of repetitions is open or zero")
        else:
            out.append(np.tile(axis, int(count)))
    return [tuple(out)]


def pad(site: Site) -> Sequence[Axes | None]:
    """New indices at either end are atoms of their own, for a constant needs no neighbour."""
    data = list(site.axes(0))
    amounts = site.numbers(1, "pads")
    axes = _optional(site, 3, "axes", list(range(len(data))))
    if amounts is None or axes is None:
        raise Unfit("the amounts it pads are computed")
    mode = site.node.attrs.get("mode", "constant")
    literal = "pads" in site.node.attrs or site.literal(1)
    for axis, before, after in zip(axes, amounts, amounts[len(axes) :], strict=False):
        data[axis] = _padded(
            site, data[axis], before, after, simple=mode in ("constant", b"constant") and literal
        )
    return [tuple(data)]


def _padded(site: Site, axis: Axis, before: int, after: int, *, simple: bool) -> Axis:
    if before == after == 0:
        return axis
    if isinstance(axis, Fixed):
        size = None if axis.size is None else axis.size + before + after
        return Fixed(size, axis.node, axis.reason, axis.quiet)
    if not simple or before < 0 or after < 0:
        site.pin(axis, "mirrors or crops it, or computes by how much")
        return site.fixed(len(axis) + before + after, "pads it")
    return np.concatenate([site.wiring.fresh(before), axis, site.wiring.fresh(after)])


def shape_of(site: Site) -> Sequence[Axes | None]:
    """Sizes that are computed with must not change; those that fold away may."""
    data = site.axes(0)
    start, end = site.attribute("start", 0), site.node.attrs.get("end", len(data))
    picked = list(range(len(data)))[start : int(end)]
    for place in _read_places(site, len(picked)):
        site.pin(data[picked[place]], "reads its size")
    return [site.held([len(picked)], "is a shape", quiet=True)]


def _read_places(site: Site, rank: int) -> set[int]:
    """Which elements of a shape its readers take."""
    read: set[int] = set()
    for reader in site.sizes.readers(site.node.outputs[0].name):
        picks = site.sizes.constant(reader.inputs[1].name) if reader.op == "Gather" else None
        if picks is None:
            picks = _slice_picks(site, reader, rank)
        if picks is None or reader.inputs[0].name != site.node.outputs[0].name:
            return set(range(rank))
        read |= {int(pick) % rank for pick in np.asarray(picks).reshape(-1)}
    return read


def _slice_picks(site: Site, reader: gs.Node, rank: int) -> np.ndarray | None:
    """The places that a Slice without axes and steps takes out of a vector."""
    if reader.op != "Slice" or len(reader.inputs) < 3 or len(reader.inputs) > 4:
        return None
    start, end = (site.sizes.constant(reader.inputs[index].name) for index in (1, 2))
    if start is None or end is None or start.size != 1:
        return None
    return np.arange(rank)[int(start.reshape(-1)[0]) : int(end.reshape(-1)[0])]


LAYOUT: Rules = {
    "Concat": concat,
    "Expand": expand,
    "Gather": gather,
    "GatherElements": gather_elements,
    "Pad": pad,
    "Shape": shape_of,
    "Slice": slices,
    "Split": split,
    "Tile": tile,
    "Transpose": transpose,
}
