"""Solve two layers in a row together: what the one cannot give the other may make up for."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from graphopt.refit.blocks import Block, Matrices
from graphopt.refit.layers import Doubles
from graphopt.refit.solving import Moments

__all__ = ["solve_together"]

_DAMPING = 1e-3
_RENEWED = 4
"""Rounds after which the curvature at the second layer is measured again."""

_SOLVED = 1e-10
"""What is left of the energy where there is nothing to gain but rounding."""


def solve_together(block: Block, rounds: int) -> tuple[Matrices, float, float]:
    """Matrices of both layers with a smaller error, and the error before and after.

    Alternating least squares with both half-steps at once: each round moves either matrix to where
    the least squares of the other one's residual would have it, by the second moments of what the
    layer reads. With momentum; where the error has grown, back to the best with half the step, so
    that the result is never worse than the start. Errors are relative to the energy of what the
    block should give.
    """
    start = block.matrices()
    energy = max(block.energy, 1e-300)
    value = block.value(start)
    first = value.loss
    if first <= _SOLVED * energy or not rounds:
        return start, first / energy, first / energy
    curve = _factors(block.moments(0, start))
    point, last, best, least = start, start, start, value
    momentum, shrink = 0, 1.0
    curves, gain = (curve, curve), 1.0
    for number in range(rounds):
        if number % _RENEWED == 0:
            curves = (curve, _factors(block.moments(1, best)))
            gain = max(block.gain(best), 1e-30)
        moved = _moved(best, least.descent, curves, (shrink * gain, shrink))
        last, point = point, moved
        share = momentum / (momentum + 3)
        ahead = tuple(new + share * (new - old) for new, old in zip(point, last, strict=True))
        momentum += 1
        value = block.value((ahead[0], ahead[1]))
        if value.loss < least.loss:
            best, least = (ahead[0], ahead[1]), value
        else:
            point, momentum, shrink = best, 0, 2 * shrink
    return best, first / energy, least.loss / energy


def _factors(moments: Moments) -> list[tuple[Doubles, bool]]:
    return [cho_factor(block) for block in moments.damped(_DAMPING)]


def _moved(
    start: Matrices,
    descent: Matrices,
    curves: tuple[list[tuple[Doubles, bool]], list[tuple[Doubles, bool]]],
    scales: tuple[float, float],
) -> Matrices:
    """A step from `start` by least squares, each matrix shortened by its scale."""
    first, second = (
        matrix
        + np.array([cho_solve(f, part) for f, part in zip(factors, slope, strict=True)]) / scale
        for matrix, slope, factors, scale in zip(start, descent, curves, scales, strict=True)
    )
    return first, second
