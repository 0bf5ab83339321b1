"""Solve the record of ties: connected components of atoms, pins spread, choices made.

Ties hold always. A choice (an axis that is the product of several follows one of them) is made in
rounds: where only one factor is free it is taken; what is left are axes that could go either way,
such as heads and the width of every head. There the outermost factor is taken, all through the
group of choices that hang together, unless that ties everything to everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from graphopt.coupling.axes import Atoms, Fixed
from graphopt.coupling.wiring import Choice, Even, Wiring

__all__ = ["Solution", "solve"]

_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Solution:
    """Which component each atom is in, which components are pinned, and by what.

    `reasons` gives, for a pinned component, the place in `pins` of what pinned it (the
    number of pins where a choice did, -1 where nothing did). `counted` are the groups whose rows
    are only kept equally long.
    """

    component: Atoms
    pinned: _Flags
    reasons: Atoms
    pins: tuple[tuple[Atoms, Fixed], ...]
    counted: tuple[Even, ...]
    followed: Mapping[int, str]


class _State:
    """Components so far; ties of choices are added to it round by round."""

    def __init__(self, label: Atoms, pinned: _Flags) -> None:
        self.label, self.pinned = label, pinned
        self.decided: dict[int, int] = {}

    def copy(self) -> _State:
        other = _State(self.label, self.pinned.copy())
        other.decided = dict(self.decided)
        return other

    def add(self, ties: Iterable[tuple[Atoms, Atoms]], pins: Iterable[Atoms]) -> None:
        """Join components and pin some, all at once."""
        for atoms in pins:
            self.pinned[self.label[atoms.reshape(-1)]] = True
        pairs = [(self.label[a], self.label[b]) for a, b in ties]
        if not pairs:
            return
        step = _components(len(self.pinned), pairs)
        pinned = np.zeros(int(step.max(initial=-1)) + 1, np.bool_)
        pinned[step[self.pinned]] = True
        self.label, self.pinned = step[self.label], pinned


def _components(count: int, pairs: Sequence[tuple[Atoms, Atoms]]) -> Atoms:
    left = np.concatenate([pair[0].reshape(-1) for pair in pairs] or [np.empty(0, np.int64)])
    right = np.concatenate([pair[1].reshape(-1) for pair in pairs] or [np.empty(0, np.int64)])
    graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def solve(wiring: Wiring, *, inner: bool = False) -> Solution:
    """Find the components; `inner` prefers the innermost factor where either would do."""
    counted: list[Even] = []
    while True:
        state = _start(wiring, counted)
        _choose(state, wiring.choices, inner=inner)
        collapsed = [
            even for even in wiring.evens if even not in counted and _collapsed(state, even)
        ]
        if not collapsed:
            return _solution(wiring, state, counted)
        counted.extend(collapsed)


def _collapsed(state: _State, even: Even) -> bool:
    """Whether tying the k-th of every group has left nothing to remove one by one."""
    labels = state.label[even.rows]
    free = ~state.pinned[labels]
    return bool(even.rows.shape[1] > 1 and free.any() and len(np.unique(labels[free])) < 2)


def _start(wiring: Wiring, counted: Sequence[Even]) -> _State:
    ties = [pair for pair in wiring.ties if len(pair[0])]
    for even in wiring.evens:
        if even in counted:
            continue
        first = even.rows[0] if even.columns is None else even.columns
        ties.extend((first, row) for row in even.rows)
    label = _components(wiring.count, ties)
    pinned = np.zeros(int(label.max(initial=-1)) + 1, np.bool_)
    pins = _pins(wiring, counted)
    if pins:
        pinned[label[np.concatenate([atoms.reshape(-1) for atoms, _ in pins])]] = True
    return _State(label, pinned)


def _pins(wiring: Wiring, counted: Sequence[Even]) -> list[tuple[Atoms, Fixed]]:
    """All pins; a weight that is cut group by group has no input axis of its own."""
    columns = [(even.columns, even.why) for even in counted if even.columns is not None]
    return [*wiring.pins, *columns]


def _options(state: _State, choice: Choice) -> list[int]:
    """Factors that at least two free indices could follow, outermost first."""
    whole = state.pinned[state.label[choice.whole]]
    if whole.all():
        return []
    found = []
    for place, atoms in choice.follows.items():
        others = tuple(axis for axis in range(whole.ndim) if axis != place)
        free = ~state.pinned[state.label[atoms]] & ~whole.any(axis=others)
        if free.sum() > 1:
            found.append(place)
    return found


def _decide(state: _State, choices: Sequence[Choice], picks: Mapping[int, int | None]) -> None:
    """Let choices follow a factor each (None: nothing), and pin the other factors."""
    ties: list[tuple[Atoms, Atoms]] = []
    pins: list[Atoms] = []
    for index, place in picks.items():
        choice = choices[index]
        state.decided[index] = -1 if place is None else place
        pins.extend(atoms for other, atoms in choice.follows.items() if other != place)
        if place is None:
            pins.append(choice.whole)
            continue
        along = np.moveaxis(choice.whole, place, 0).reshape(choice.whole.shape[place], -1)
        ties.append((np.repeat(choice.follows[place], along.shape[1]), along.reshape(-1)))
    state.add(ties, pins)


def _force(state: _State, choices: Sequence[Choice]) -> None:
    """Make every choice that has at most one option left, until none has."""
    while True:
        picks: dict[int, int | None] = {}
        for index, choice in enumerate(choices):
            if index in state.decided:
                continue
            options = _options(state, choice)
            if len(options) < 2:
                picks[index] = options[0] if options else None
        if not picks:
            return
        _decide(state, choices, picks)


def _choose(state: _State, choices: Sequence[Choice], *, inner: bool) -> None:
    _force(state, choices)
    waiting = _bundles(state, choices)
    attempt = 0
    while waiting:
        tried = state.copy()
        starts = dict(tried.decided)
        _try(tried, choices, waiting, attempt, inner=inner)
        last = attempt >= max(len(choices[i].follows) for bundle in waiting for i in bundle) - 1
        good = [b for b in waiting if last or _keeps_apart(tried, choices, b)]
        picks = {i: tried.decided[i] for bundle in good for i in bundle}
        assert not set(picks) & set(starts), "a bundle holds open choices only"
        _decide(state, choices, {i: None if p < 0 else p for i, p in picks.items()})
        waiting = [b for b in waiting if not any(b is other for other in good)]
        attempt += 1


def _bundles(state: _State, choices: Sequence[Choice]) -> list[list[int]]:
    """Open choices that share free components, in the order of the graph."""
    left = [index for index in range(len(choices)) if index not in state.decided]
    pairs: list[tuple[Atoms, Atoms]] = []
    for number, index in enumerate(left):
        choice = choices[index]
        atoms = np.concatenate([choice.whole.reshape(-1), *choice.follows.values()])
        labels = np.unique(state.label[atoms])
        labels = labels[~state.pinned[labels]]
        pairs.append((np.full(len(labels), number, np.int64), labels + len(left)))
    joined = _components(len(left) + len(state.pinned), pairs)[: len(left)]
    bundles: dict[int, list[int]] = {}
    for index, bundle in zip(left, joined.tolist(), strict=True):
        bundles.setdefault(bundle, []).append(index)
    return list(bundles.values())


def _try(
    state: _State,
    choices: Sequence[Choice],
    bundles: Sequence[Sequence[int]],
    attempt: int,
    *,
    inner: bool,
) -> None:
    """In every bundle make the first open choice by preference, follow its consequences, repeat."""
    while True:
        picks: dict[int, int | None] = {}
        for bundle in bundles:
            index = next((index for index in bundle if index not in state.decided), None)
            if index is None:
                continue
            options = _options(state, choices[index])
            if inner:
                options = options[::-1]
            picks[index] = options[min(attempt, len(options) - 1)] if options else None
        if not picks:
            return
        _decide(state, choices, picks)
        _force(state, choices)


def _keeps_apart(state: _State, choices: Sequence[Choice], bundle: Sequence[int]) -> bool:
    """Whether every choice of a bundle left at least two components that can go one by one."""
    for index in bundle:
        place = state.decided[index]
        if place < 0:
            return False
        labels = np.unique(state.label[choices[index].follows[place]])
        if np.count_nonzero(~state.pinned[labels]) < 2:
            return False
    return True


def _solution(wiring: Wiring, state: _State, counted: Sequence[Even]) -> Solution:
    pins = _pins(wiring, counted)
    reasons = np.where(state.pinned, len(pins), -1).astype(np.int64)
    order = sorted(range(len(pins)), key=lambda i: (pins[i][1].quiet, i))
    for place in order[::-1]:
        reasons[state.label[pins[place][0].reshape(-1)]] = place
    followed = {
        int(component): wiring.choices[index].node
        for index in state.decided
        for atoms in wiring.choices[index].follows.values()
        for component in np.unique(state.label[atoms])
    }
    return Solution(state.label, state.pinned, reasons, tuple(pins), tuple(counted), followed)
