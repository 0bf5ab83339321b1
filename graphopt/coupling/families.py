"""Families of coupled channels: what can be removed, what goes with it, and why something cannot.

A coupled channel is everything that must go together: rows of weights, entries of biases, columns
of the weights that read them. A family is a set of coupled channels that are alike, in that they
pass through the same axes of the same tensors; such channels compete with each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from graphopt.coupling.axes import Atoms, Axes
from graphopt.coupling.costs import Held, held
from graphopt.coupling.rules import wire
from graphopt.coupling.sizes import Sizes
from graphopt.coupling.solving import Solution, solve
from graphopt.coupling.sorting import Registry, sort_components
from graphopt.coupling.wiring import Even, Wiring
from graphopt.errors import RecipeError
from graphopt.ir import Graph

__all__ = [
    "Coupling",
    "Family",
    "Frozen",
    "Member",
    "couple",
    "explain",
    "what_holds",
    "why_nothing",
]


@dataclass(frozen=True)
class Member:
    """An axis of a tensor that a family passes through.

    `places[i]` is an index of the axis, `channels[i]` the channel (0 .. size - 1 of its family)
    that index belongs to. A channel may own several places.
    """

    tensor: str
    axis: int
    places: Atoms
    channels: Atoms

    def of(self, channel: int) -> Atoms:
        """The indices that belong to one channel."""
        return np.asarray(self.places[self.channels == channel])


@dataclass(frozen=True)
class Frozen:
    """Why a family cannot be cut: the node (or input, output) that pins it, and its reason."""

    node: str
    reason: str


@dataclass(frozen=True)
class Family:
    """Coupled channels that are alike.

    `members` are constants; `components` the solver's numbers of the channels, in order. `even`
    holds, for each group whose rows must keep equally many, the count of each channel's places in
    each row (rows, size). Where `exact` is False, `blur` says which node reads all channels at
    once, so that the cut equals the original only with that reading over the kept ones.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    components: Atoms
    exact: bool = True
    blur: str = ""
    frozen: Frozen | None = None
    even: tuple[Atoms, ...] = field(default=())


@dataclass(frozen=True)
class Coupling:
    """All families of one graph, in the order of the graph, and what removal needs to know."""

    graph: Graph
    revision: int
    wiring: Wiring
    solution: Solution
    sizes: Sizes
    families: tuple[Family, ...]
    frozen: tuple[Family, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Family]:
        return {family.name: family for family in (*self.families, *self.frozen)}

    @cached_property
    def held(self) -> Mapping[str, Held]:
        """MACs and parameters that each family holds, by its name."""
        components = {name: family.components for name, family in self.by_name.items()}
        return held(self.graph, self.wiring, self.solution.component, components)

    def family(self, name: str) -> Family:
        """A family that can be cut; raises RecipeError for an unknown or frozen one."""
        found = self.by_name.get(name)
        if found is None:
            raise RecipeError(f"coupling: there is no family {name!r}; inspect lists them")
        if found.frozen is not None:
            raise RecipeError(f"coupling: {name!r} is frozen: {explain(found)}")
        return found

    def axes(self, tensor: str) -> Axes | None:
        """The atoms of a tensor's axes; None where it is not part of the main scope."""
        return self.wiring.axes.get(tensor)

    def activations(self, family: Family) -> tuple[Member, ...]:
        """The axes of computed tensors that a family passes through."""
        channel = self._channels(family)
        return tuple(
            Member(name, place, np.flatnonzero(of >= 0), of[of >= 0])
            for name, axes in self.wiring.axes.items()
            if axes is not None and self.graph.constant(name) is None
            for place, axis in enumerate(axes)
            if isinstance(axis, np.ndarray)
            and ((of := channel[self.solution.component[axis]]) >= 0).any()
        )

    def _channels(self, family: Family) -> Atoms:
        """The channel of each component, -1 for those of other families."""
        channel = np.full(len(self.solution.pinned), -1, np.int64)
        channel[family.components] = np.arange(family.size)
        return channel


def explain(family: Family) -> str:
    """Why a family cannot be cut, in words."""
    return "" if family.frozen is None else f"{family.frozen.node} {family.frozen.reason}"


def why_nothing(coupling: Coupling) -> str:
    """Why no family can be cut, in words: what holds the largest."""
    if not coupling.frozen:
        return "there are no channels to remove"
    return f"no channel can go; {what_holds(coupling)}"


def what_holds(coupling: Coupling) -> str:
    """What holds the largest family that cannot be cut, in words; nothing where all can."""
    if not coupling.frozen:
        return ""
    largest = max(coupling.frozen, key=lambda family: coupling.held[family.name])
    assert largest.frozen is not None, "what cannot be cut says why"
    name, why = largest.name, largest.frozen
    return f"{name!r}, the largest that stays whole, is held by {why.node}, which {why.reason}"


def couple(graph: Graph, *, inner: bool = False) -> Coupling:
    """Find every family of coupled channels of a graph; changes nothing.

    Where an axis is the product of several that could each be cut, such as the heads of attention
    and the width of every head, whole heads are coupled; `inner` prefers the widths.
    """
    sizes = Sizes(graph)
    wiring = wire(graph, sizes)
    solution = solve(wiring, inner=inner)
    registry = Registry(graph, wiring, solution)
    free = sort_components(registry, ~solution.pinned)
    stuck = sort_components(registry, solution.pinned)
    names: dict[str, int] = {}
    families = tuple(_family(registry, components, names) for components in free)
    frozen = tuple(_family(registry, components, names) for components in stuck)
    return Coupling(graph, graph.revision, wiring, solution, sizes, families, frozen)


def _family(registry: Registry, components: Atoms, names: dict[str, int]) -> Family:
    members = registry.members(components)
    name = registry.producer(components, [(tensor, axis) for tensor, axis, _, _ in members])
    names[name] = names.get(name, 0) + 1
    if names[name] > 1:
        name = f"{name}#{names[name]}"
    why, blur = registry.reason(components), registry.blur(components)
    return Family(
        name=name,
        size=len(components),
        members=tuple(Member(*member) for member in members),
        components=components,
        exact=blur is None,
        blur="" if blur is None else f"{blur.node} {blur.reason}",
        frozen=None if why is None else Frozen(why.node, why.reason),
        even=tuple(_counts(registry, even, components) for even in registry.counted(components)),
    )


def _counts(registry: Registry, even: Even, components: Atoms) -> Atoms:
    """How many places each channel has in each row of a group."""
    channel = registry.numbering(components)[even.rows]
    counts = np.zeros((len(even.rows), len(components)), np.int64)
    for row, channels in enumerate(channel):
        np.add.at(counts[row], channels[channels >= 0], 1)
    return counts
