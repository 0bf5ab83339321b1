"""Codes by descent: never worse than the start, and no single change makes them better."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from graphopt.quantize.descending import descend
from graphopt.quantize.gptq import sweep

Doubles = npt.NDArray[np.float64]
LIMITS = (-4, 3)


def task(seed: int, groups: int, outputs: int, columns: int) -> tuple[Doubles, Doubles, Doubles]:
    """A matrix, moments of correlated inputs, scales (one for each output)."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(columns) + rng.standard_normal((groups, columns, columns)) / columns**0.5
    mixed = rng.standard_normal((groups, 4 * columns, columns)) @ mixing
    moments = mixed.transpose(0, 2, 1) @ mixed / (4 * columns)
    matrix = rng.standard_normal((groups, outputs, columns))
    scale = np.abs(matrix).max(axis=2, keepdims=True) / 3.5
    return matrix, moments, np.broadcast_to(scale, matrix.shape)


def loss(codes: Doubles, scale: Doubles, matrix: Doubles, moments: Doubles) -> Doubles:
    """For each output."""
    error = codes * scale - matrix
    return np.asarray(((error @ moments) * error).sum(axis=2))


@pytest.mark.parametrize(("seed", "groups", "columns"), [(0, 1, 6), (1, 3, 5), (2, 1, 150)])
def test_no_single_change_is_better(seed: int, groups: int, columns: int) -> None:
    matrix, moments, scale = task(seed, groups, 4, columns)
    zero = np.zeros_like(matrix)
    start = np.clip(np.rint(matrix / scale), *LIMITS)
    codes, same = descend(start, matrix, moments, scale, zero, LIMITS, fit_scale=False)
    np.testing.assert_array_equal(same, scale)
    assert codes.min() >= LIMITS[0]
    assert codes.max() <= LIMITS[1]
    least = loss(codes, scale, matrix, moments)
    assert (least <= loss(start, scale, matrix, moments) + 1e-9).all()
    assert least.sum() < 0.9 * loss(start, scale, matrix, moments).sum()
    for column in range(columns):
        for code in range(LIMITS[0], LIMITS[1] + 1):
            other = codes.copy()
            other[..., column] = code
            assert (loss(other, scale, matrix, moments) >= least - 1e-9).all()


def test_near_the_best_of_all() -> None:
    matrix, moments, scale = task(3, 1, 40, 4)
    zero = np.zeros_like(matrix)
    start = sweep(matrix[0], moments[0], scale[0], zero[0], LIMITS, 1e-9)[np.newaxis]
    codes, _ = descend(start, matrix, moments, scale, zero, LIMITS, fit_scale=False)
    every = itertools.product(range(LIMITS[0], LIMITS[1] + 1), repeat=4)
    losses = [loss(np.broadcast_to(np.array(c, float), matrix.shape), scale, matrix, moments)
              for c in every]  # fmt: skip
    best = np.min(losses, axis=0).sum()
    assert best <= loss(codes, scale, matrix, moments).sum() <= 1.3 * best + 1e-12


def test_scales_are_fitted_and_stay_one_for_each_output() -> None:
    matrix, moments, scale = task(4, 2, 5, 12)
    zero = np.zeros_like(matrix)
    start = np.clip(np.rint(matrix / scale), *LIMITS)
    fixed, _ = descend(start, matrix, moments, scale, zero, LIMITS, fit_scale=False)
    codes, fitted = descend(start, matrix, moments, scale, zero, LIMITS, fit_scale=True)
    assert (fitted > 0).all()
    assert (np.ptp(fitted, axis=2) < 1e-12).all()
    found = loss(codes, fitted, matrix, moments)
    assert (found <= loss(fixed, scale, matrix, moments) + 1e-9).all()
    slope = ((codes * fitted - matrix) @ moments * codes).sum(axis=2)
    assert np.abs(slope).max() < 0.05 * np.abs((matrix @ moments * codes).sum(axis=2)).max()


def test_columns_that_are_never_read_keep_their_codes() -> None:
    matrix, moments, scale = task(5, 1, 3, 6)
    moments[:, 2, :] = moments[:, :, 2] = 0
    start = np.clip(np.rint(matrix / scale), *LIMITS)
    zero = np.zeros_like(matrix)
    codes, fitted = descend(start, matrix, moments, scale, zero, LIMITS, fit_scale=True)
    np.testing.assert_array_equal(codes[..., 2], start[..., 2])
    nothing, kept = descend(0 * start, matrix, 0 * moments, scale, zero, LIMITS, fit_scale=True)
    np.testing.assert_array_equal(kept, scale)
    assert not nothing.any()
    assert np.isfinite(fitted).all()
