"""Choose channels by what their loss costs after a refit, and widths by what that does to outputs.

Channels go one by one, each time the one whose loss can best be made up for by re-solving the
layers that read it. What a few widths of each family alone do to the model's outputs is measured;
between them the error of the layers, known for every width, says how to interpolate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from graphopt.coupling import Coupling, Family, Plan
from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.refit.frontier import Frontier
from graphopt.refit.layers import Layer, check_weights, find_layer
from graphopt.refit.ordering import Ordering, surgeon
from graphopt.refit.picking import Choice
from graphopt.refit.settings import Settings
from graphopt.refit.solving import Moments, Reader, eliminate, least_squares
from graphopt.refit.walking import ROWS, WIDEST

__all__ = ["Curve", "Reading", "choices_of", "curves", "readings_of"]

Doubles = npt.NDArray[np.float64]

_WIDTHS = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
"""Parts of a family that are measured to stay."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A layer that sums over a family: columns of its matrix channel by channel, then the rest."""

    layer: Layer
    columns: npt.NDArray[np.int64]
    per_channel: int


@dataclass(frozen=True, eq=False)
class Curve:
    """The order in which a family's channels go, and the error with so many left: 0 to all."""

    order: tuple[int, ...]
    errors: Doubles
    readings: tuple[Reading, ...]


def readings_of(coupling: Coupling, family: Family) -> list[Reading]:
    """The layers that sum over a family; none if one of them cannot be solved for its columns."""
    found = []
    for member in coupling.activations(family):
        for node in coupling.graph.consumers(member.tensor):
            layer = find_layer(coupling.graph, node)
            if layer is None or layer.data != member.tensor or layer.groups > 1:
                continue
            rank = len(coupling.axes(member.tensor) or ())
            if member.axis != layer.channel_axis % rank:
                continue
            order = np.argsort(member.channels, kind="stable")
            counts = np.bincount(member.channels, minlength=family.size)
            if (counts != counts[0]).any():
                return []
            taps = np.arange(layer.taps)
            own = (member.places[order][:, np.newaxis] * layer.taps + taps).reshape(-1)
            rest = np.setdiff1d(np.arange(layer.matrix(coupling.graph).shape[1]), own)
            found.append(Reading(layer, np.concatenate([own, rest]), int(counts[0]) * layer.taps))
    return found


def curves(
    coupling: Coupling,
    families: Sequence[Family],
    dataset: Dataset,
    held_out: Dataset,
    settings: Settings,
    ordering: Ordering = surgeon,
    progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[dict[str, Curve], int]:
    """The curve of every family whose readers can be solved, and the inputs to judge all of them.

    Those that the criterion of the ordering does not apply to are left out. Moments come from
    `dataset`, errors of the outputs, relative to their variance, from `held_out`.
    """
    check_weights(coupling.graph)
    readings = {family.name: readings_of(coupling, family) for family in families}
    moments, needed = _measured(coupling.graph, readings, dataset, settings)
    outputs = _Outputs(coupling.graph, held_out, settings)
    found: dict[str, Curve] = {}
    for number, family in enumerate(families):
        usable = readings[family.name]
        if usable and all(reading.layer.output in moments for reading in usable):
            own = [moments[reading.layer.output] for reading in usable]
            curve = _curve(family, usable, own, outputs, settings, ordering)
            if curve is not None:
                found[family.name] = curve
        progress((number + 1) / len(families))
    return found, needed


def choices_of(
    coupling: Coupling, found: Mapping[str, Curve], plan: Plan, ordering: Ordering = surgeon
) -> tuple[dict[str, Choice], Plan]:
    """Split a plan: what is better chosen at the layer that reads it, and what is cut before.

    A family can wait if one layer alone reads it, and that layer reads no other family.
    """
    readers = Counter(entry.layer.output for curve in found.values() for entry in curve.readings)
    later: dict[str, Choice] = {}
    for name, kept in plan.items():
        family, readings = coupling.family(name), found[name].readings
        if len(readings) == 1 and readers[readings[0].layer.output] == 1 and not family.even:
            (own,) = readings
            later[own.layer.output] = Choice(
                name,
                own.layer.data,
                family.size,
                len(kept),
                own.columns,
                own.per_channel,
                partial(_ordered, ordering, family),
            )
    waiting = {choice.family for choice in later.values()}
    return later, {name: kept for name, kept in plan.items() if name not in waiting}


def _ordered(ordering: Ordering, family: Family, reader: Reader) -> list[int] | None:
    return ordering(family, [reader])


def _measured(
    graph: Graph, readings: Mapping[str, list[Reading]], dataset: Dataset, settings: Settings
) -> tuple[dict[str, Moments], int]:
    """The moments of all layers that read a family, with what they compute now as the target.

    And the number of inputs that would be enough for all of them.
    """
    layers = {entry.layer.output: entry.layer for entries in readings.values() for entry in entries}
    place = {node.outputs[0].name: number for number, node in enumerate(graph.nodes)}
    frontier = Frontier(graph, dataset, threads=settings.threads)
    rng = np.random.default_rng(settings.seed)
    count = -(-ROWS // len(dataset))
    found, needed = {}, 0
    for name in sorted(layers, key=lambda name: place[name]):
        layer = layers[name]
        matrix = layer.matrix(graph)
        if matrix.shape[1] > WIDEST:
            continue
        moments = Moments.empty(*matrix.shape, bias=layer.has_bias)
        for batch in frontier.batches([layer.data]):
            rows = layer.rows(batch[layer.data], layer.places(batch[layer.data], count, rng))
            moments.gram += rows.transpose(0, 2, 1) @ rows
            moments.rows += rows.shape[1]
        moments.cross = moments.gram @ matrix
        moments.energy = float(np.einsum("gio,gio->", matrix, moments.cross))
        if moments.rows >= matrix.shape[1]:
            found[name] = moments
        needed = max(needed, -(-len(dataset) * matrix.shape[1] // max(moments.rows, 1)))
    return found, needed


class _Outputs:
    """What a change of some layers does to the outputs, measured from the nearest held tensors."""

    def __init__(self, graph: Graph, dataset: Dataset, settings: Settings) -> None:
        self._graph = graph
        self._frontier = Frontier(graph, dataset, threads=settings.threads)
        self._names = [name for name in graph.outputs if graph.is_float(name)]
        self._wanted = self._run(self._frontier)
        self._spreads = [max(float(array.var()), 1e-30) for array in self._wanted]

    def _run(self, frontier: Frontier) -> list[Doubles]:
        parts = [list(batch.values()) for batch in frontier.batches(self._names)]
        return [
            np.concatenate([array.ravel() for array in column]).astype(np.float64)
            for column in zip(*parts, strict=True)
        ]

    def hold(self, names: Sequence[str]) -> None:
        for _ in self._frontier.batches(names):
            pass

    def error(self, changes: Sequence[tuple[Layer, Doubles]]) -> float:
        """The mean square error relative to the variance, summed over outputs."""
        graph = self._graph.clone()
        for layer, matrix in changes:
            made = graph.producer(layer.node.outputs[0].name)
            own = None if made is None else find_layer(graph, made)
            assert own is not None, "a clone has the same layers"
            own.write(graph, matrix)
        frontier = self._frontier.varied(graph, [layer.output for layer, _ in changes])
        return sum(
            float(np.mean((made - wanted) ** 2)) / spread
            for made, wanted, spread in zip(
                self._run(frontier), self._wanted, self._spreads, strict=True
            )
        )


def _curve(
    family: Family,
    readings: Sequence[Reading],
    moments: Sequence[Moments],
    outputs: _Outputs,
    settings: Settings,
    ordering: Ordering,
) -> Curve | None:
    size = family.size
    arranged = [
        part.taking(reading.columns) for reading, part in zip(readings, moments, strict=True)
    ]
    readers = [
        Reader(part, reading.per_channel, 1 / max(part.energy, 1e-300))
        for reading, part in zip(readings, arranged, strict=True)
    ]
    given = ordering(family, readers)
    if given is None and ordering is not surgeon:
        return None
    order, costs = eliminate(readers, size, settings.damping, given=given)
    local = np.zeros(size + 1)  # with so many channels left
    local[1:size] = np.maximum.accumulate(costs)[::-1]
    outputs.hold([readings[0].layer.data])
    widths = sorted({max(1, round(part * size)) for part in _WIDTHS} - {size})
    measured = [
        _error(readings, arranged, order[: size - k], size, outputs, settings) for k in widths
    ]
    known = np.maximum.accumulate(np.array([0.0, *measured[::-1]]))
    places = np.array([0.0, *local[widths][::-1]])
    errors = np.interp(local, places, known)
    errors[0] = errors[1]
    return Curve(tuple(order), errors, tuple(readings))


def _error(
    readings: Sequence[Reading],
    moments: Sequence[Moments],
    gone: Sequence[int],
    size: int,
    outputs: _Outputs,
    settings: Settings,
) -> float:
    """The error of the outputs without some channels, with their readers solved anew."""
    changes = []
    for reading, part in zip(readings, moments, strict=True):
        stays = np.ones(len(reading.columns), np.bool_)
        own = stays[: size * reading.per_channel].reshape(size, reading.per_channel)
        own[list(gone)] = False
        columns = np.flatnonzero(stays)
        solved = least_squares(part.taking(columns), settings.damping)
        matrix = np.zeros((1, len(reading.columns), solved.shape[2]))
        matrix[:, reading.columns[columns]] = solved
        changes.append((reading.layer, matrix))
    return outputs.error(changes)
