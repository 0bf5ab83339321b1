"""Remove channels everywhere they reach: decide every change first, then make all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from graphopt.cost import operator
from graphopt.coupling.axes import Fixed
from graphopt.coupling.families import Coupling, Family
from graphopt.coupling.repairs import REPAIRS, Shrunk
from graphopt.errors import EditError
from graphopt.ir import Array, Edit, Graph, remade

__all__ = ["Kept", "Plan", "kept_components", "plan_without", "remove"]

Plan = Mapping[str, Sequence[int] | npt.NDArray[np.int64]]
"""For each family that is cut, by name, the channels that stay."""

Kept = dict[str, dict[int, list[int] | list[list[int]]]]
"""For each constant that was cut: axis -> kept indices of the original, in their new order.

The input axis of a grouped convolution may keep other indices in every group; then there is one
list per group.
"""


def kept_components(coupling: Coupling, plan: Plan) -> npt.NDArray[np.bool_]:
    """Which components stay; raises EditError for a plan that cannot be carried out."""
    if coupling.graph.revision != coupling.revision:
        raise EditError("remove: the graph was edited since its channels were coupled; couple anew")
    keep = np.ones(len(coupling.solution.pinned), np.bool_)
    for name, channels in plan.items():
        family = coupling.family(name)
        stays = _checked(family, np.asarray(channels, dtype=np.int64))
        keep[family.components[~stays]] = False
    return keep


def _checked(family: Family, channels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    if not len(channels):
        raise EditError(f"remove: {family.name!r} would be emptied; keep at least one channel")
    if channels.min() < 0 or channels.max() >= family.size:
        raise EditError(
            f"remove: channels of {family.name!r} are 0 to {family.size - 1}, "
            f"got {channels.min()} to {channels.max()}"
        )
    stays = np.zeros(family.size, np.bool_)
    stays[channels] = True
    for counts in family.even:
        left = counts[:, stays].sum(axis=1)
        if (left != left[0]).any() or not left[0]:
            raise EditError(
                f"remove: the groups that {family.name!r} feeds must keep equally many, "
                f"they would keep {left.tolist()}"
            )
    return stays


def plan_without(
    coupling: Coupling, going: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[np.int64]]:
    """What stays if these components go where each may go alone; a family keeps one channel."""
    plan = {}
    for family in coupling.families:
        gone = going[family.components]
        if family.exact and not family.even and gone.any():
            gone[0] &= not gone.all()
            plan[family.name] = np.flatnonzero(~gone)
    return plan


def remove(graph: Graph, coupling: Coupling, plan: Plan) -> Kept:
    """Cut every tensor of the removed channels and repair what depends on sizes.

    Everything is decided before anything is changed; an EditError leaves the graph as it was.
    """
    if graph is not coupling.graph:
        raise EditError("remove: the channels were coupled on another graph")
    keep = kept_components(coupling, plan)[coupling.solution.component]
    constants, record = _cut_constants(coupling, keep)
    nodes, attributes = [], []
    for node in graph.nodes:
        row = REPAIRS.get(operator(node))
        shrunk = Shrunk(node, coupling.wiring, coupling.sizes, keep)
        if row is None or not shrunk.touched:
            continue
        change = row(shrunk)
        if change.inputs:
            nodes.append((node, remade(node, change.inputs, change.attributes)))
        elif change.attributes:
            attributes.append((node, change.attributes))
    graph.apply(
        Edit(tuple(old for old, _ in nodes), tuple(new for _, new in nodes), constants=constants)
    )
    for node, changed in attributes:
        for key, value in changed.items():
            graph.set_attribute(node, key, value)
    graph.prune()  # what computed sizes that are constants now
    graph.reshape_notice()
    return record


def _cut_constants(
    coupling: Coupling, keep: npt.NDArray[np.bool_]
) -> tuple[dict[str, Array], Kept]:
    grouped = {even.weight: even for even in coupling.solution.counted if even.weight}
    arrays: dict[str, Array] = {}
    record: Kept = {}
    for name, axes in coupling.wiring.axes.items():
        array = coupling.graph.constant(name)
        if array is None or axes is None:
            continue
        kept: dict[int, list[int] | list[list[int]]] = {}
        if name in grouped:
            array, columns = _cut_groups(array, grouped[name].rows, keep)
            if columns:
                kept[1] = columns
        stays = {
            place: np.flatnonzero(keep[axis])
            for place, axis in enumerate(axes)
            if not isinstance(axis, Fixed) and not keep[axis].all()
        }
        kept.update({place: indices.tolist() for place, indices in stays.items()})
        if kept:
            arrays[name], record[name] = _take_all(array, stays), kept
    return arrays, record


_CHUNK_BYTES = 1 << 22
"""Large weights are cut a few rows at a time, so that what lies between two cuts stays in cache."""


def _take_all(array: Array, stays: Mapping[int, npt.NDArray[np.int64]]) -> Array:
    """Keep some indices of several axes."""
    rest = {axis: indices for axis, indices in stays.items() if axis}
    if 0 not in stays or not rest or array.nbytes < 2 * _CHUNK_BYTES or not array.strides[0]:
        for axis, indices in stays.items():
            array = _take(array, indices, axis)
        return array
    rows = max(1, _CHUNK_BYTES * len(array) // array.nbytes)
    chunks = np.split(stays[0], range(rows, len(stays[0]), rows))
    shape = [len(stays.get(axis, range(size))) for axis, size in enumerate(array.shape)]
    out, done = np.empty(shape, array.dtype), 0
    for chunk in chunks:
        part = np.take(array, chunk, axis=0)
        for axis, indices in rest.items():
            part = _take(part, indices, axis)
        out[done : done + len(chunk)] = part
        done += len(chunk)
    return out


def _take(array: Array, indices: npt.NDArray[np.int64], axis: int) -> Array:
    """numpy's take, in blocks where indices come in runs: a flattened axis has long ones."""
    if array.strides[axis] == 0:
        shape = list(array.shape)
        shape[axis] = len(indices)
        return np.broadcast_to(array[(slice(0, 1),) * array.ndim], shape)
    size = array.shape[axis]
    edges = np.flatnonzero(np.diff(indices) != 1) + 1
    block = math.gcd(size, *edges.tolist(), *indices[edges].tolist(), int(indices[0]), len(indices))
    if block == 1 or (indices.reshape(-1, block)[:, 0] % block).any():
        return np.take(array, indices, axis=axis)
    split = (*array.shape[:axis], size // block, block, *array.shape[axis + 1 :])
    taken = np.take(array.reshape(split), indices[::block] // block, axis=axis)
    return taken.reshape(*array.shape[:axis], len(indices), *array.shape[axis + 1 :])


def _cut_groups(
    array: Array, rows: npt.NDArray[np.int64], keep: npt.NDArray[np.bool_]
) -> tuple[Array, list[list[int]]]:
    """Cut the input axis of a grouped convolution's weight, in every group its own channels."""
    stays = keep[rows]
    if stays.all():
        return array, []
    columns = [np.flatnonzero(row) for row in stays]
    blocks = np.split(array, len(rows))
    parts = [np.take(block, own, axis=1) for block, own in zip(blocks, columns, strict=True)]
    return np.concatenate(parts), [own.tolist() for own in columns]
