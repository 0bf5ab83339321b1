"""Least squares from second moments: ridge, blockwise elimination, and a fit that knows ReLU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

__all__ = ["Chunk", "Moments", "Passing", "Reader", "eliminate", "least_squares", "rectified"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_BIAS_RIDGE = 1e-6
"""Just enough to tell the bias from a channel that is constant."""


@dataclass
class Moments:
    """Sums of products over rows, for each group: of columns, and of columns with targets.

    The last column is the bias' if `bias` is set.
    """

    gram: Doubles
    cross: Doubles
    bias: bool
    energy: float = 0.0
    rows: int = 0

    @classmethod
    def empty(cls, groups: int, columns: int, outputs: int, *, bias: bool) -> Moments:
        return cls(np.zeros((groups, columns, columns)), np.zeros((groups, columns, outputs)), bias)

    def add(self, rows: Floats, targets: Floats) -> None:
        turned = rows.transpose(0, 2, 1)
        self.gram += turned @ rows
        self.cross += turned @ targets
        self.energy += float(np.einsum("gij,gij->", targets, targets, dtype=np.float64))
        self.rows += rows.shape[1]

    def ridge(self, damping: float) -> Doubles:
        """The diagonal of the ridge: (group, column)."""
        diagonal = self.gram.diagonal(axis1=1, axis2=2)
        taken = diagonal[:, :-1] if self.bias else diagonal
        mean = np.maximum(taken.mean(axis=1, keepdims=True), 1e-12)
        ridge = np.broadcast_to(damping * mean, diagonal.shape).copy()
        if self.bias:
            ridge[:, -1] = _BIAS_RIDGE * self.rows
        return ridge

    def damped(self, damping: float) -> Doubles:
        return self.gram + self.ridge(damping)[:, :, np.newaxis] * np.eye(self.gram.shape[1])

    def taking(self, columns: npt.NDArray[np.int64]) -> Moments:
        """The moments of some columns only."""
        gram = self.gram[:, columns[:, np.newaxis], columns]
        return Moments(gram, self.cross[:, columns], self.bias, self.energy, self.rows)

    def error(self, matrix: Doubles) -> float:
        """The sum of squares that a matrix leaves of the targets."""
        fitted = np.einsum("gio,gio->", matrix, self.gram @ matrix - 2 * self.cross)
        return max(self.energy + float(fitted), 0.0)


def least_squares(moments: Moments, damping: float, prior: Doubles | None = None) -> Doubles:
    """The matrix W with the least |rows W - targets|^2 + ridge |W - prior|^2."""
    cross = moments.cross
    if prior is not None:
        cross = cross + moments.ridge(damping)[:, :, np.newaxis] * prior
    return np.asarray(np.linalg.solve(moments.damped(damping), cross), np.float64)


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads a family: its moments, whose columns are in the order of the family's
    channels, and so many for each of them; columns after those are not the family's.

    `weight` says how much an error of its counts.
    """

    moments: Moments
    per_channel: int
    weight: float = 1.0


def eliminate(
    readers: Iterable[Reader],
    channels: int,
    damping: float,
    *,
    least: int = 1,
    given: Sequence[int] | None = None,
) -> tuple[list[int], list[float]]:
    """Let channels go one by one, each time the one whose loss costs least after a refit.

    Returns the order in which they go, and the error that has come to be after each; `least`
    channels stay. Exact: block elimination from the inverse (optimal brain surgeon), without a
    re-solve. With an order that is `given`, what that costs.
    """
    states = []
    for reader in readers:
        inverse = np.linalg.inv(reader.moments.damped(damping))[0]
        states.append(_State(inverse, inverse @ reader.moments.cross[0], reader))
    alive = list(range(channels))
    order: list[int] = []
    errors: list[float] = []
    total = 0.0
    while len(alive) > least:
        scores = sum((state.scores(len(alive)) for state in states), np.zeros(len(alive)))
        place = int(scores.argmin()) if given is None else alive.index(given[len(order)])
        total += float(scores[place])
        order.append(alive.pop(place))
        errors.append(total)
        for state in states:
            state.drop(place)
    return order, errors


class _State:
    """What is left of one reader during an elimination."""

    def __init__(self, inverse: Doubles, solution: Doubles, reader: Reader) -> None:
        self._inverse, self._solution = inverse, solution
        self._size, self._weight = reader.per_channel, reader.weight

    def scores(self, count: int) -> Doubles:
        size = self._size
        places = np.arange(count * size).reshape(count, size)
        blocks = self._inverse[places[:, :, np.newaxis], places[:, np.newaxis, :]]
        parts = self._solution[: count * size].reshape(count, size, -1)
        costs = np.einsum("nko,nko->n", np.linalg.solve(blocks, parts), parts)
        return np.asarray(costs * self._weight, np.float64)

    def drop(self, place: int) -> None:
        size = self._size
        gone = np.arange(place * size, (place + 1) * size)
        stays = np.delete(np.arange(len(self._solution)), gone)
        column = self._inverse[np.ix_(stays, gone)]
        pivot = self._inverse[np.ix_(gone, gone)]
        self._solution = self._solution[stays] - column @ np.linalg.solve(
            pivot, self._solution[gone]
        )
        rest = self._inverse[np.ix_(stays, stays)]
        rest -= column @ np.linalg.solve(pivot, column.T)
        self._inverse = (rest + rest.T) / 2


Passing = tuple[float, float]
"""The least and the most that get through to the next layer."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows, what their sums should be, and what else is summed."""

    rows: Floats
    target: Floats
    beside: Floats | None = None

    @property
    def wanted(self) -> Floats:
        """What the rows should give."""
        return self.target if self.beside is None else self.target - self.beside

    def residual(self, matrix: Floats, passing: Passing) -> Floats:
        """What is missing of what gets through."""
        made = self.rows @ matrix
        if self.beside is not None:
            made += self.beside
        low, high = passing
        left: Floats = np.where(
            self.target <= low,
            np.minimum(low - made, 0),
            np.where(self.target >= high, np.maximum(high - made, 0), self.target - made),
        )
        return left


def rectified(
    moments: Moments,
    chunks: Callable[[], Iterable[Chunk]],
    start: Doubles,
    damping: float,
    rounds: int,
    passing: Passing = (0.0, np.inf),
) -> Doubles:
    """Fit what gets through a ReLU, or a clamp, of rows W + shortcut, starting from a plain fit.

    Each round minimises a quadratic above the error that touches it where W is (where the target
    is off, only what sticks out counts): one factorisation serves all, with momentum.
    """
    ridge = moments.ridge(damping)[:, :, np.newaxis]
    factors = [cho_factor(block) for block in moments.damped(damping)]
    matrix = last = start
    for number in range(rounds):
        ahead = matrix + number / (number + 3) * (matrix - last)
        step = -ridge * (ahead - start)
        single = ahead.astype(np.float32)
        for chunk in chunks():
            step += chunk.rows.transpose(0, 2, 1) @ chunk.residual(single, passing)
        moved = [cho_solve(f, part) for f, part in zip(factors, step, strict=True)]
        last, matrix = matrix, ahead + np.array(moved)
    return matrix
