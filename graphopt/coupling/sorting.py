"""Sort components into families: those that pass through the same axes are alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graphopt.coupling.axes import Atoms, Fixed
from graphopt.coupling.solving import Solution
from graphopt.coupling.wiring import Even, Wiring
from graphopt.ir import Graph

__all__ = ["Registry", "sort_components"]


class Registry:
    """Every distinct axis of atoms, and which tensors it is an axis of."""

    def __init__(self, graph: Graph, wiring: Wiring, solution: Solution) -> None:
        self.wiring, self.solution = wiring, solution
        self.axes: list[Atoms] = []
        self.owners: list[list[tuple[str, int]]] = []
        self._produced = _produced(graph, wiring)
        numbers: dict[int, int] = {}
        self._order: dict[tuple[str, int], int] = {}
        for name, axes in wiring.axes.items():
            constant = graph.constant(name) is not None
            for place, axis in enumerate(axes or ()):
                if isinstance(axis, Fixed) or not len(axis):
                    continue
                number = numbers.setdefault(id(axis), len(self.axes))
                if number == len(self.axes):
                    self.axes.append(axis)
                    self.owners.append([])
                if constant:
                    self._order[name, place] = len(self._order)
                    self.owners[number].append((name, place))
        count = len(solution.pinned)
        self.signature = self._sign(count)
        held = [number for number, owners in enumerate(self.owners) if owners]
        self._index(held, count)
        self._blurred = self._mark_blurs(count)

    def _index(self, held: Sequence[int], count: int) -> None:
        """Sort the places of constants' axes by component."""
        sizes = [len(self.axes[number]) for number in held]
        none = np.empty(0, np.int64)
        atoms = np.concatenate([*(self.axes[number] for number in held), none])
        component = self.solution.component[atoms]
        order = np.argsort(component, kind="stable")
        self._axis = np.repeat(np.array(held, np.int64), sizes)[order]
        self._place = np.concatenate([*(np.arange(size) for size in sizes), none])[order]
        self._start = np.searchsorted(component[order], np.arange(count + 1))

    def _sign(self, count: int) -> npt.NDArray[np.uint64]:
        """A number per component that is equal where the sets of axes are."""
        random = np.random.default_rng(0).integers(1, 2**63, len(self.axes), dtype=np.uint64)
        signature = np.zeros(count, np.uint64)
        for axis, number in zip(self.axes, random, strict=True):
            signature[np.unique(self.solution.component[axis])] += number
        return signature

    def _mark_blurs(self, count: int) -> Atoms:
        marks = np.full(count, -1, np.int64)
        for number in range(len(self.wiring.blurs))[::-1]:
            marks[self.solution.component[self.wiring.blurs[number][0]]] = number
        return marks

    def held(self) -> npt.NDArray[np.bool_]:
        """Which components some constant is part of."""
        return np.diff(self._start) > 0

    def numbering(self, components: Atoms) -> Atoms:
        """For each atom its place among some components, -1 for those of others."""
        channel = np.full(len(self.solution.pinned), -1, np.int64)
        channel[components] = np.arange(len(components))
        return channel[self.solution.component]

    def members(self, components: Atoms) -> list[tuple[str, int, Atoms, Atoms]]:
        """Constants' axes that components pass through: tensor, axis, places, channels."""
        starts = self._start[components]
        lengths = self._start[components + 1] - starts
        channel = np.repeat(np.arange(len(components)), lengths)
        skipped = np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        entries = skipped + np.arange(len(channel))
        axis, place = self._axis[entries], self._place[entries]
        found: list[tuple[str, int, Atoms, Atoms]] = []
        for number in np.unique(axis).tolist():
            if not self.owners[number]:
                continue
            here = axis == number
            order = np.argsort(place[here], kind="stable")
            pair = place[here][order], channel[here][order]
            found.extend((name, at, *pair) for name, at in self.owners[number])
        return sorted(found, key=lambda member: self._order[member[0], member[1]])

    def producer(self, components: Atoms, members: Sequence[tuple[str, int]]) -> str:
        """The constant that makes the channels: the first one whose axis a node hands on."""
        made = [member for member in members if member in self._produced]
        ranked = sorted(made, key=lambda member: self._produced[member])
        return (ranked or list(members))[0][0]

    def reason(self, components: Atoms) -> Fixed | None:
        reason = int(self.solution.reasons[components[0]])
        if reason < 0:
            return None
        if reason < len(self.solution.pins):
            return self.solution.pins[reason][1]
        node = self.solution.followed.get(int(components[0]), "a Reshape")
        return Fixed(None, node, "merges or splits it with another axis that is cut instead")

    def blur(self, components: Atoms) -> Fixed | None:
        marks = self._blurred[components]
        found = marks[marks >= 0]
        return self.wiring.blurs[int(found.min())][1] if len(found) else None

    def counted(self, components: Atoms) -> list[Even]:
        members = set(components.tolist())
        return [
            even
            for even in self.solution.counted
            if members & set(self.solution.component[even.rows].reshape(-1).tolist())
        ]

    def quiet(self) -> npt.NDArray[np.bool_]:
        """Which components are pinned for reasons nobody asks about."""
        quiet = np.array([why.quiet for _, why in self.solution.pins] + [False], np.bool_)
        reasons = self.solution.reasons
        return (reasons >= 0) & quiet[np.maximum(reasons, 0)]


def _produced(graph: Graph, wiring: Wiring) -> dict[tuple[str, int], int]:
    """Axes of weights that are axes of what their node computes, by the order of the nodes."""
    found: dict[tuple[str, int], int] = {}
    for rank, node in enumerate(graph.nodes):
        made = {
            id(axis)
            for tensor in node.outputs
            for axis in wiring.axes.get(tensor.name) or ()
            if isinstance(axis, np.ndarray)
        }
        for tensor in node.inputs:
            array = graph.constant(tensor.name) if tensor.name else None
            if array is None or array.ndim < 2:
                continue
            for place, axis in enumerate(wiring.axes.get(tensor.name) or ()):
                if id(axis) in made:
                    found.setdefault((tensor.name, place), rank)
    return found


def sort_components(registry: Registry, wanted: npt.NDArray[np.bool_]) -> list[Atoms]:
    """Group the wanted components that some constant is part of, in the order of the graph."""
    solution = registry.solution
    components = np.flatnonzero(wanted & registry.held() & ~registry.quiet())
    keys = np.stack(
        [registry.signature[components], solution.reasons[components].astype(np.uint64)]
    )
    _, group = np.unique(keys, axis=1, return_inverse=True)
    group = _joined(registry, components, group.reshape(-1))
    order = np.argsort(group, kind="stable")
    parts = np.split(components[order], np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((part for part in parts if len(part)), key=lambda part: int(part[0]))


def _joined(registry: Registry, components: Atoms, group: Atoms) -> Atoms:
    """Families that some group must keep evenly are one, so that each can be judged alone."""
    if not registry.solution.counted:
        return group
    group_of = np.full(len(registry.solution.pinned), -1, np.int64)
    group_of[components] = group
    for even in registry.solution.counted:
        touched = np.unique(group_of[registry.solution.component[even.rows]])
        touched = touched[touched >= 0]
        if len(touched) > 1:
            group_of[np.isin(group_of, touched)] = touched[0]
    return group_of[components]
