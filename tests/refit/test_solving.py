"""Least squares: elimination against brute force, ridge, and the fit that knows ReLU."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.refit.solving import Chunk, Moments, Reader, eliminate, least_squares, rectified

DAMPING = 1e-4


def drawn(columns: int, outputs: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated rows with a column of ones, and noisy targets."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns, columns)) * (rng.random((columns, columns)) < 0.3)
    rows = rng.standard_normal((1, 400, columns)) @ (mixing + np.eye(columns))
    rows = np.concatenate([rows, np.ones((1, 400, 1))], axis=2).astype(np.float32)
    truth = rng.standard_normal((columns + 1, outputs))
    targets = rows @ truth + 0.3 * rng.standard_normal((1, 400, outputs))
    return rows, targets.astype(np.float32)


def moments_of(rows: np.ndarray, targets: np.ndarray) -> Moments:
    moments = Moments.empty(1, rows.shape[2], targets.shape[2], bias=True)
    moments.add(rows[:, :150], targets[:, :150])
    moments.add(rows[:, 150:], targets[:, 150:])
    return moments


def test_solution_and_error_are_those_of_the_rows() -> None:
    rows, targets = drawn(6, 3)
    moments = moments_of(rows, targets)
    matrix = least_squares(moments, 1e-9)
    wanted, *_ = np.linalg.lstsq(rows[0].astype(np.float64), targets[0], rcond=None)
    np.testing.assert_allclose(matrix[0], wanted, atol=1e-3)
    left = np.square(targets - rows @ matrix).sum()
    np.testing.assert_allclose(moments.error(matrix), left, rtol=1e-3)


def test_ridge_pulls_to_the_prior() -> None:
    moments = moments_of(*drawn(6, 3))
    prior = np.full((1, 7, 3), 2.0)
    np.testing.assert_allclose(least_squares(moments, 1e9, prior)[0, :-1], 2.0, atol=1e-3)


def test_elimination_is_exact() -> None:
    """Each step takes the channel whose loss raises the re-solved error least, as it says."""
    first, second = moments_of(*drawn(12, 3)), moments_of(*drawn(18, 2, seed=1))
    readers = [Reader(first, 2), Reader(second, 3, weight=0.5)]

    def cost(alive: list[int]) -> float:
        total = 0.0
        for reader in readers:
            size, last = reader.per_channel, reader.moments.gram.shape[1] - 1
            columns = [c * size + i for c in alive for i in range(size)] + [last]
            gram = reader.moments.damped(DAMPING)[0][np.ix_(columns, columns)]
            cross = reader.moments.cross[0][columns]
            total -= reader.weight * float(np.sum(cross * np.linalg.solve(gram, cross)))
        return total

    order, errors = eliminate(readers, 6, DAMPING)
    alive, start = list(range(6)), cost(list(range(6)))
    assert len(order) == 5
    for gone, error in zip(order, errors, strict=True):
        trials = {c: cost([a for a in alive if a != c]) for c in alive}
        assert min(trials, key=lambda c: trials[c]) == gone
        np.testing.assert_allclose(trials[gone] - start, error, rtol=1e-6)
        alive.remove(gone)


def test_elimination_in_a_given_order_costs_what_it_does() -> None:
    readers = [Reader(moments_of(*drawn(12, 3)), 2)]
    free, costs = eliminate(readers, 6, DAMPING)
    again, same = eliminate(readers, 6, DAMPING, given=free)
    assert again == free
    np.testing.assert_allclose(same, costs)
    other = sorted(range(6), key=lambda c: -free.index(c) if c in free else -6)
    order, dearer = eliminate(readers, 6, DAMPING, given=other)
    assert order == other[:5]
    assert dearer[0] > costs[0]


@pytest.mark.parametrize("passing", [(0.0, np.inf), (-0.5, 1.0), (-np.inf, 0.0)])
def test_rectified_fit_is_better_behind_the_clamp(passing: tuple[float, float]) -> None:
    rows, targets = drawn(8, 4)
    few = np.ascontiguousarray(rows[:, :, [0, 1, 2, 3, 8]])
    shortcut = np.multiply(targets, 0.1, dtype=np.float32)
    chunk = Chunk(few, targets, shortcut)
    moments = moments_of(chunk.rows, chunk.wanted)
    plain = least_squares(moments, DAMPING)

    def error(matrix: np.ndarray) -> float:
        left = np.clip(few @ matrix + shortcut, *passing) - np.clip(targets, *passing)
        return float(np.square(left).sum())

    fitted = rectified(moments, lambda: [chunk], plain, DAMPING, 20, passing)
    assert error(fitted) < 0.95 * error(plain)


def test_what_is_off_on_both_sides_is_right() -> None:
    """Nothing is left to do where the clamp hides the difference."""
    rows, targets = drawn(3, 2)
    matrix = np.zeros((1, 4, 2), np.float32)
    chunk = Chunk(rows, np.full_like(targets, 7.0), np.full_like(targets, 9.0))
    assert not chunk.residual(matrix, (0.0, 6.0)).any()
    chunk = Chunk(rows, np.full_like(targets, -7.0), np.full_like(targets, -1.0))
    assert not chunk.residual(matrix, (0.0, 6.0)).any()
