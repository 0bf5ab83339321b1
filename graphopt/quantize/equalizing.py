"""Rescale channels so that layers that follow each other use their range alike.

Nagel et al. 2019: the channel between two layers is divided by sqrt(r1 / r2), where r1 is the
largest weight that writes it and r2 the largest that reads it. Where several layers write or read
a channel, their ranges enter as geometric means. Magnitudes are (group, output, input).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from graphopt.coupling.axes import Atoms
from graphopt.coupling.scaling import Scalable, scalable
from graphopt.ir import Array, Graph
from graphopt.quantize.references import Reference, write_references
from graphopt.rewrite.linear import LinearLayer, linear_layer
from graphopt.rewrite.matching import is_op

__all__ = ["Equalization", "decide", "read_tensors", "rescale"]

Doubles = npt.NDArray[np.float64]

_LIMIT = 16.0 * math.log(2.0)
"""Logarithm of the largest factor."""

_WORTHWHILE = 0.01
"""Segments whose factors all lie closer to 1 stay as they are."""


@dataclass(frozen=True, eq=False)
class Equalization:
    """The value of each factor, how many segments of channels have some, and the sweeps taken."""

    scalable: Scalable
    scales: Doubles
    segments: int
    sweeps: int


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer's largest weights (group, output, input) and the factors of what it reads, writes."""

    magnitudes: Doubles
    reads: Atoms | None
    writes: Atoms | None

    @property
    def depthwise(self) -> bool:
        groups, _, inputs = self.magnitudes.shape
        return bool(groups > 1 and inputs == 1)

    def ranges(self, logs: Doubles) -> tuple[Doubles, Doubles]:
        """The logarithms of the largest weight of each output, and of each input."""
        groups, outputs, inputs = self.magnitudes.shape
        whole = np.append(logs, 0.0)
        scaled = self.magnitudes
        if self.reads is not None:
            scaled = scaled * np.exp(whole[self.reads]).reshape(groups, 1, inputs)
        if self.writes is not None:
            scaled = scaled / np.exp(whole[self.writes]).reshape(groups, outputs, 1)
        with np.errstate(divide="ignore"):
            return (
                np.log(scaled.max(axis=2, initial=0.0)).ravel(),
                np.log(scaled.max(axis=1, initial=0.0)).ravel(),
            )


def decide(
    graph: Graph, bounds: Mapping[str, Array] | None, *, sweeps: int, tolerance: float
) -> Equalization:
    """Find the factors that equalize; changes nothing.

    With `bounds`, the largest magnitude of each channel of tensors that layers read, channels are
    equalized between activations and what reads them instead; a depthwise reader has a scale of
    its own for each channel, so nothing is lost there. Sweeps over all segments go on until no
    factor changes by more than `tolerance` of itself.
    """
    found = scalable(graph)
    layers = [_layer(graph, node, found) for node in graph.nodes]
    kept = [layer for layer in layers if layer is not None]
    activations = None if bounds is None else _largest(found, bounds)
    logs = np.zeros(found.count)
    segments = _segments(found)
    users = _users(kept, segments)
    sweep, largest = 0, math.inf
    while sweep < sweeps and largest > tolerance:
        sweep, before = sweep + 1, logs
        for segment, members in users.items():
            step = _step(kept, members, logs, activations, segments == segment)
            logs = np.clip(logs + step, -_LIMIT, _LIMIT)
        largest = float(np.abs(logs - before).max(initial=0.0))
    peaks = np.zeros(len(segments))
    np.maximum.at(peaks, segments, np.abs(logs))
    logs = np.where(peaks[segments] > _WORTHWHILE, logs, 0.0)
    return Equalization(found, np.exp(logs), int(np.count_nonzero(peaks > _WORTHWHILE)), sweep)


def _layer(graph: Graph, node: gs.Node, found: Scalable) -> _Layer | None:
    linear = linear_layer(graph, node)
    if linear is None:
        return None
    axis = linear.channel_axis
    reads = found.along(node.inputs[0].name, axis)
    writes = found.along(node.outputs[0].name, axis)
    if reads is None and writes is None:
        return None
    return _Layer(_magnitudes(linear), reads, writes)


def _magnitudes(linear: LinearLayer) -> Doubles:
    weight = np.abs(linear.weight.astype(np.float64))
    matrix = weight.max(axis=tuple(range(2, weight.ndim)), initial=0.0)
    if not linear.outputs_first:
        assert linear.groups == 1, "a transposed convolution with groups has no factors"
        matrix = matrix.T
    return np.asarray(matrix.reshape(linear.groups, -1, matrix.shape[1]))


def _segments(found: Scalable) -> Atoms:
    """The number of each factor's segment: factors of one axis belong together."""
    pairs = [
        (numbers[numbers >= 0][:1].repeat((numbers >= 0).sum()), numbers[numbers >= 0])
        for factors in found.factors.values()
        for numbers in factors
        if numbers is not None
    ]
    none = np.empty(0, np.int64)
    rows = np.concatenate([none, *(a for a, _ in pairs)])
    columns = np.concatenate([none, *(b for _, b in pairs)])
    shape = (found.count, found.count)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=shape)
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _users(layers: list[_Layer], segments: Atoms) -> dict[int, list[int]]:
    """The layers that touch each segment, in order."""
    users: dict[int, list[int]] = {}
    for place, layer in enumerate(layers):
        for numbers in (layer.reads, layer.writes):
            if numbers is not None:
                for segment in np.unique(segments[numbers[numbers >= 0]]).tolist():
                    if place not in users.setdefault(segment, []):
                        users[segment].append(place)
    return users


def _step(
    layers: list[_Layer],
    members: list[int],
    logs: Doubles,
    activations: Doubles | None,
    mine: npt.NDArray[np.bool_],
) -> Doubles:
    """By how much the logarithms of one segment's factors should change."""
    wide = any(layers[p].reads is not None and not layers[p].depthwise for p in members)
    free = activations is not None and not wide
    writers, readers = _Mean(len(logs)), _Mean(len(logs))
    for layer in (layers[place] for place in members):
        written, read = layer.ranges(logs)
        if layer.writes is not None:
            writers.add(layer.writes, written)
        if layer.reads is not None and not (activations is not None and layer.depthwise):
            readers.add(layer.reads, read)
    if activations is None:
        step = 0.5 * (writers.value() - readers.value())
    else:
        ahead = activations - logs
        step = ahead if free else 0.5 * (ahead - readers.value())
    usable = mine & np.isfinite(step)
    if activations is not None and usable.any():
        step = step - np.median(step[usable])
    return np.where(usable, step, 0.0)


class _Mean:
    """The mean logarithm of the ranges of each factor; not finite where there is none."""

    def __init__(self, count: int) -> None:
        self._sum, self._count = np.zeros(count), np.zeros(count)

    def add(self, numbers: Atoms, logs: Doubles) -> None:
        taken = numbers >= 0
        np.add.at(self._sum, numbers[taken], logs[taken])
        np.add.at(self._count, numbers[taken], 1.0)

    def value(self) -> Doubles:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self._sum / self._count)


def read_tensors(graph: Graph) -> tuple[tuple[str, int], ...]:
    """Computed tensors that layers read and that can be rescaled, with the axis of channels."""
    found = scalable(graph)
    tensors: dict[str, int] = {}
    for node in graph.nodes:
        linear = linear_layer(graph, node)
        if linear is None:
            continue
        name = str(node.inputs[0].name)
        if found.along(name, linear.channel_axis) is not None:
            tensors[name] = linear.channel_axis
    return tuple(tensors.items())


def _largest(found: Scalable, bounds: Mapping[str, Array]) -> Doubles:
    """The logarithm of the largest activation of each factor."""
    peaks = np.zeros(found.count)
    for name, peak in bounds.items():
        for numbers in found.factors[name]:
            if numbers is not None and len(numbers) == len(peak):
                np.maximum.at(peaks, numbers[numbers >= 0], peak[numbers >= 0])
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(peaks))


# ---- carrying it out ---------------------------------------------------------------------------


def rescale(graph: Graph, found: Scalable, scales: Doubles) -> tuple[str, ...]:
    """Divide every tensor by its factors, in the weights; return the names that changed.

    Rescaled tensors get names of their own, and a note says what they were.
    """
    changed: dict[str, Array] = {}
    for name in found.factors:
        array = graph.constant(name)
        divisor = found.divisor(name, scales)
        if array is not None and np.any(divisor != 1.0):
            changed[name] = np.asarray(array.astype(np.float64) / divisor, array.dtype)
    for node in graph.nodes:
        changed |= _weights(graph, node, found, scales)
    for name, array in changed.items():
        graph.set_constant(name, array)
    renamed = {
        name: graph.fresh(f"{name}_rescaled")
        for name in found.factors
        if graph.constant(name) is None and np.any(found.divisor(name, scales) != 1.0)
    }
    noted = {
        new: _reference(old, found, scales)
        for old, new in renamed.items()
        if _is_result(graph, old)
    }
    for old, new in renamed.items():
        graph.rename(old, new)
    write_references(graph, noted)
    return tuple(renamed)


def _is_result(graph: Graph, name: str) -> bool:
    """Whether a layer, or the sum behind one, computes a tensor: what is compared later."""
    maker = graph.producer(name)
    return maker is not None and (is_op(maker, "Add") or linear_layer(graph, maker) is not None)


def _reference(name: str, found: Scalable, scales: Doubles) -> Reference:
    whole = np.append(scales, 1.0)
    return Reference(
        name,
        {
            axis: whole[numbers].astype(np.float32)
            for axis, numbers in enumerate(found.factors[name])
            if numbers is not None
        },
    )


def _weights(graph: Graph, node: gs.Node, found: Scalable, scales: Doubles) -> dict[str, Array]:
    """The new weights of a layer, by name."""
    if is_op(node, "LayerNormalization"):
        return _normalization(graph, node, found, scales)
    linear = linear_layer(graph, node)
    if linear is None:
        return {}
    whole, axis = np.append(scales, 1.0), linear.channel_axis
    reads = found.along(node.inputs[0].name, axis)
    writes = found.along(node.outputs[0].name, axis)
    factor: Doubles = np.ones((1,) * linear.weight.ndim)
    if reads is not None:
        factor = factor * linear.along(whole[reads], outputs=False)
    if writes is not None:
        factor = factor / linear.along(whole[writes], outputs=True)
    if np.all(factor == 1.0):
        return {}
    changed = {
        str(node.inputs[1].name): np.asarray(
            linear.weight.astype(np.float64) * factor, linear.weight.dtype
        )
    }
    return changed | ({} if writes is None else _bias(graph, node, 2, whole[writes]))


def _normalization(
    graph: Graph, node: gs.Node, found: Scalable, scales: Doubles
) -> dict[str, Array]:
    writes = found.along(node.outputs[0].name, -1)
    if writes is None:
        return {}
    divisor = np.append(scales, 1.0)[writes]
    return _bias(graph, node, 1, divisor) | _bias(graph, node, 2, divisor)


def _bias(graph: Graph, node: gs.Node, place: int, divisor: Doubles) -> dict[str, Array]:
    """A vector of one number per channel, divided."""
    name = str(node.inputs[place].name) if len(node.inputs) > place else ""
    array = graph.constant(name) if name else None
    if array is None or np.all(divisor == 1.0):
        return {}
    shape = array.shape if array.size == divisor.size else (divisor.size,)
    made = array.astype(np.float64).reshape(-1) / divisor
    return {name: np.asarray(made.reshape(shape), array.dtype)}
