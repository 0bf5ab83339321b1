"""Weights solved for again: exact where rows are many, near the old ones where they are few."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.quantize.solving import solve_again

Floats = np.ndarray


def rows(count: int, noise: float, *, seed: int = 0) -> tuple[Floats, Floats, Floats, Floats]:
    """Old weights, the wanted ones near them, inputs with means, targets."""
    rng = np.random.default_rng(seed)
    old = rng.standard_normal((2, 3, 20))
    wanted = old + 0.1 * rng.standard_normal(old.shape)
    inputs = (rng.standard_normal((2, count, 20)) + 1).astype(np.float32)
    made = inputs @ wanted.transpose(0, 2, 1)
    targets = (made + noise * rng.standard_normal(made.shape)).astype(np.float32)
    return old, wanted, inputs, targets


@pytest.mark.parametrize("free", [True, False])
def test_many_rows_tell_the_weights(*, free: bool) -> None:
    old, wanted, inputs, targets = rows(2000, 0.0)
    shift = np.full((2, 3), 0.7)
    biased = targets + np.float32(0.7)
    found, gram = solve_again(old, inputs, biased, shift, 1e-5, free=free)
    assert np.abs(found - wanted).max() < 2e-3
    means = inputs.mean(1, keepdims=True) if free else 0
    plain = inputs - means
    np.testing.assert_allclose(gram, plain.transpose(0, 2, 1) @ plain / 2000, atol=0.03)


def test_what_the_bias_takes_up_is_not_solved_for() -> None:
    old, _, inputs, _ = rows(2000, 0.0)
    targets = (inputs @ old.transpose(0, 2, 1) + 5.0).astype(np.float32)
    bias = np.zeros((2, 3))
    found, _ = solve_again(old, inputs, targets, bias, 1e-5, free=True)
    assert np.abs(found - old).max() < 1e-3
    found, _ = solve_again(old, inputs, targets, bias, 1e-5, free=False)
    assert np.abs(found - old).max() > 0.1


def test_few_rows_are_not_learned_by_heart() -> None:
    old, wanted, inputs, targets = rows(24, 2.0)
    _, _, fresh, _ = rows(2000, 0.0)
    bias = np.zeros((2, 3))
    found, _ = solve_again(old, inputs, targets, bias, 1e-3, free=True)

    def error(matrix: Floats) -> float:
        left = fresh @ (matrix - wanted).transpose(0, 2, 1)
        return float(np.square(left - left.mean(1, keepdims=True)).mean())

    turned = inputs - inputs.mean(1, keepdims=True)
    left = targets - inputs @ old.transpose(0, 2, 1)
    heart = old + np.stack(
        [np.linalg.lstsq(x, y, rcond=None)[0].T for x, y in zip(turned, left, strict=True)]
    )
    assert error(found) < 0.1 * error(heart)
    assert error(found) < 1.2 * error(old)


def test_one_row_is_enough_to_stay_where_it_was() -> None:
    old, _, inputs, targets = rows(1, 1.0)
    found, gram = solve_again(old, inputs, targets, np.zeros((2, 3)), 0.01, free=True)
    np.testing.assert_allclose(found, old)
    assert np.isfinite(gram).all()
